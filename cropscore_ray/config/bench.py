"""The settings of a benchmark."""

from dataclasses import dataclass

from cropscore_ray.config.rules import check, require


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """How much is measured, and of what; each benchmark reads the fields that concern it."""

    rounds: int = 5
    """Measurements of each thing."""
    model: str | None = None
    """URI of a bundle with a scorer; None: torchvision's GoogLeNet with random weights."""
    images: int = 20
    """Training images of each of 1,000 classes; a mirrored image counts as one."""
    storage: str | None = None
    """URI below which checkpoints go; None: a temporary folder."""
    steps: int = 20
    """Of an epoch; some epochs have a checkpoint in the middle."""

    def __post_init__(self) -> None:
        check(self, "bench", "1 or more", "rounds", "images")
        require(self.steps >= 2, "bench.steps", self.steps, "2 or more")
