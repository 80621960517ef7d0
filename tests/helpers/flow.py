"""The whole flow, small: drawn images, a model trained on them, and a run of it."""

from dataclasses import dataclass
from pathlib import Path

from cropscore_ray import storage
from cropscore_ray.config.bulk import LocalizeConfig, RunConfig
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.jobs import index, localize, recipes, train

NUM_TRAIN, NUM_VAL = 64, 16
CONFIG = LocalizeConfig(part_images=6)


@dataclass
class Flow:
    folder: Path
    manifest: str
    model: str
    run: str

    def localize(self, out: str, config: LocalizeConfig = CONFIG, **options) -> dict:
        run = RunConfig(**{"source": self.manifest, "model": self.model, "out": out, **options})
        return localize.run("localize", run, config)


def make_flow(folder: Path) -> Flow:
    """Draw, train and localize, on the Ray that there is."""
    labels = draw_image_set(str(folder / "images"), num_train=NUM_TRAIN, num_val=NUM_VAL, seed=1)
    made = Flow(folder, str(folder / "manifest"), str(folder / "model"), str(folder / "run"))
    index.run(f"csv:{labels}", made.manifest)
    train.run("all", data=made.manifest, model=made.model, config=recipes.smoke())
    made.localize(made.run, split="val")
    return made


def rows(run: str) -> list[dict]:
    return storage.read_table(f"{run}/predictions").to_pylist()
