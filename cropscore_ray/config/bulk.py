"""The settings of a bulk run: what it computes, and with how many processes."""

from dataclasses import dataclass

from cropscore_ray.config.modes import MODES
from cropscore_ray.config.rules import check, one_of, require
from cropscore_ray.config.sections import MAX_MEGAPIXELS


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalizeConfig:
    """What a bulk run computes; part of the run's identity."""

    mode: str | None = None
    """exact, pyramid, votes (see TrainConfig.mode), or None: what the model learnt from."""
    classes: str = "both"
    """predicted: ranks 1 to top_k; label: rank 0, the manifest's class; both."""
    top_k: int = 5
    """Predicted classes an image."""
    part_images: int | None = None
    """Images a part: one file, and what a lost worker does again, once or twice; None: 64, and
    more in large runs (part_sizes.sizes)."""
    max_megapixels: float = MAX_MEGAPIXELS
    """Larger images are not decoded (status too_large)."""

    def __post_init__(self) -> None:
        if self.mode is not None:
            one_of(MODES, "mode", self.mode)
        one_of(("predicted", "label", "both"), "classes", self.classes)
        require(1 <= self.top_k <= 1000, "top_k", self.top_k, "from 1 to 1000")
        check(self, "", "1 or more, or null", "part_images")
        check(self, "", "above 0", "max_megapixels")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """Which processes hold the model; no part of a run's identity: a resumed run may change it."""

    num_workers: int | None = None
    """So many from the start, waited for if there is no room yet; None: as many as have room."""
    gpus_per_worker: float | None = None
    """1, a fraction, or 0 for CPUs; None: 1 where the cluster has GPUs or announces that it can get
    some, which Ray's own autoscaler does not."""

    def __post_init__(self) -> None:
        check(self, "workers", "1 or more", "num_workers")
        check(self, "workers", "from 0 to 1", "gpus_per_worker")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What a run goes through, with which model, where its results go, and how it begins."""

    source: str
    """A manifest, or anything that `index` takes."""
    model: str
    """URI of the bundle."""
    out: str
    """URI of the run folder."""
    split: str | None = None
    """Of the manifest; None: all its images."""
    overwrite: bool = False
    """Delete another run that is in the folder."""
    retry: bool = False
    """Of a complete run, do those parts again in which the store gave no answer for an image; a
    resumed run does so anyway."""
    max_failed_fraction: float = 1.0
    """Of the images, before the run counts as failed; if all of them failed, it always does."""

    def __post_init__(self) -> None:
        check(self, "run", "from 0 to 1", "max_failed_fraction")
