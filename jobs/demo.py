"""The job behind `cropscore demo`: every stage, on an image set that the program draws."""

from dataclasses import replace
from functools import partial

from cropscore_ray import storage
from cropscore_ray.config.bulk import LocalizeConfig, RunConfig
from cropscore_ray.datasets.drawn import draw_image_set
from cropscore_ray.errors import RunConflictError
from cropscore_ray.jobs import evaluate, index, localize, recipes, report, train
from cropscore_ray.terminal.progress import Progress
from cropscore_ray.terminal.tables import Table

NUM_TRAIN = 1600
NUM_VAL = 240
SEED = 2014


def run(out: str, *, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL) -> list[Table | str]:
    """Draw, index, train, localize, evaluate and report below `out`; return the figures.

    Leaves metrics.json, report.html, model/ and run/. Started again, it goes on where it
    was stopped: trained stages and a complete run are passed over.
    """
    images, manifest, model, run_folder = (
        storage.join(out, name) for name in ("images", "manifest", "model", "run")
    )
    page = storage.join(out, "report.html")
    with Progress().live() as progress:
        draw = partial(draw_image_set, seed=SEED, progress=partial(progress.update, "draw"))
        labels = draw(images, num_train=num_train, num_val=num_val)
        index.run(f"csv:{labels}", manifest, overwrite=True)
        train.run("all", data=manifest, model=model, config=recipes.demo(), progress=progress)
        run = RunConfig(source=manifest, split="val", model=model, out=run_folder)
        boxes = LocalizeConfig(part_images=32)
        try:
            localize.run("localize", run, boxes, progress=progress)
        except RunConflictError:  # of an older version's model: a demo begins afresh
            localize.run("localize", replace(run, overwrite=True), boxes, progress=progress)
    evaluation = evaluate.run(
        run_folder, manifest, split="val", json_path=storage.join(out, "metrics.json")
    )
    report.run(run_folder, out=page)
    return [*evaluate.render(evaluation), "", f"the report: {page}"]
