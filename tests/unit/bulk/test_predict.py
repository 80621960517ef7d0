"""From bytes to rows: each image has its rows, whatever its bytes and its neighbours."""

import io
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from cropscore_ray import schema
from cropscore_ray.bulk.predict import LocalizeStage, Row, ScoreStage
from cropscore_ray.config.bulk import LocalizeConfig
from cropscore_ray.datasets.drawn import draw_image
from cropscore_ray.errors import ImageError, ModelError
from cropscore_ray.grid import NUM_SQUARES
from cropscore_ray.jobs import recipes
from cropscore_ray.models.bundle import LOCALIZER, SCORER, Bundle, classifier_part, save_part
from cropscore_ray.models.googlenet import make_network
from cropscore_ray.models.regressors import NUM_EVIDENCE, SHARED, Regressors
from cropscore_ray.schema import ImageClass

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = [ImageClass(id=f"n{i}", name=f"class {i}") for i in range(4)]
Fetched = bytes | ImageError


def random_localizer() -> Regressors:
    generator = torch.Generator().manual_seed(2)
    heads = torch.randn(2, 4, NUM_SQUARES + 1, generator=generator) * 0.05
    heads[:, :, -1] = torch.tensor([0.2, 0.2, 0.8, 0.8])
    return Regressors(
        hidden=[],
        heads_G4H=heads,
        slot_of_class=torch.tensor([SHARED, 1, SHARED, SHARED]),
        confidence=torch.ones(3, NUM_EVIDENCE),
        normalization="zscore",
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = recipes.smoke()
    uri = str(tmp_path_factory.mktemp("bundle"))
    bundle = Bundle(uri=uri, config=config, classes=CLASSES, parts={}, baselines={})
    torch.manual_seed(1)
    for part in (classifier_part(0), classifier_part(1), SCORER):
        network = make_network(config.network, len(CLASSES))
        bundle = save_part(bundle, part, dict(network.state_dict()), metrics={})
    tensors = random_localizer().to_tensors()
    return save_part(bundle, LOCALIZER, tensors, metrics={}, baselines={"cam_threshold": 0.3})


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def drawn(number: int) -> bytes:
    return png(draw_image(np.random.default_rng((8, number)), number)[0])


def manifest_row(image_id: int, class_index: int | None = 1) -> Row:
    return {
        "image_id": image_id,
        "image_uri": f"images/{image_id}.png",
        "width_px": 11,
        "height_px": 22,
        "class_index": class_index,
    }


def run_stage(stage: ScoreStage, fetched: list[Fetched], **row: Any) -> list[Row]:
    rows = [manifest_row(i, **row) for i in range(len(fetched))]
    return stage(rows, fetched)


@pytest.fixture(scope="module")
def localize(bundle: Bundle) -> LocalizeStage:
    return LocalizeStage(bundle, LocalizeConfig(top_k=2))


BAD = [
    (b"", "empty"),
    (b"no image", "undecodable"),
    (drawn(0)[:200], "undecodable"),
    (png(Image.new("1", (2000, 1001))), "too_large"),
    (ImageError("missing", "no file x"), "missing"),
    (ImageError("denied", "not allowed"), "denied"),
]


@pytest.mark.parametrize("stage", [ScoreStage, LocalizeStage])
def test_a_bad_image_has_one_row_with_its_status(bundle: Bundle, stage: type[ScoreStage]) -> None:
    config = LocalizeConfig(max_megapixels=2)
    fetched: list[Fetched] = [one for one, _ in BAD]
    rows = run_stage(stage(bundle, config), fetched)
    assert [row["image_id"] for row in rows] == list(range(len(BAD)))
    assert [row["status"] for row in rows] == [status for _, status in BAD]
    assert all(row["error"] for row in rows)
    assert all(row.get("xmin") is None and row.get("class_rank") is None for row in rows)


def test_bad_images_do_not_touch_their_neighbours(localize: LocalizeStage) -> None:
    good = run_stage(localize, [drawn(1)])
    mixed = localize(
        [manifest_row(7), manifest_row(0), manifest_row(8)], [b"", drawn(1), b"no image"]
    )
    assert [row["image_id"] for row in mixed] == [7, 0, 0, 0, 8]
    assert mixed[1:4] == good


@pytest.mark.parametrize(
    ("classes", "class_index", "ranks"),
    [
        ("label", 3, [0]),
        ("predicted", 3, [1, 2]),
        ("both", 3, [0, 1, 2]),
        ("predicted", None, [1, 2]),
        ("both", None, [1, 2]),
    ],
)
def test_classes_choose_the_rows(
    bundle: Bundle, classes: str, class_index: int | None, ranks: list[int]
) -> None:
    stage = LocalizeStage(bundle, LocalizeConfig(classes=classes, top_k=2))
    rows = run_stage(stage, [drawn(1)], class_index=class_index)
    assert [row["class_rank"] for row in rows] == ranks
    probabilities = stage.scorer.classify([np.asarray(Image.open(io.BytesIO(drawn(1))))])[0].numpy()
    best = np.argsort(-probabilities)[:2].tolist()
    expected = [class_index if rank == 0 else best[rank - 1] for rank in ranks]
    assert [row["class_index"] for row in rows] == expected
    assert [row["class_name"] for row in rows] == [f"class {index}" for index in expected]
    known = [row["class_score"] for row in rows]
    if classes == "label":
        assert known == [None]
    else:
        assert known == pytest.approx([probabilities[index] for index in expected])


@pytest.mark.parametrize("stage", [ScoreStage, LocalizeStage])
def test_a_label_that_is_not_there_is_a_status(bundle: Bundle, stage: type[ScoreStage]) -> None:
    [row] = run_stage(stage(bundle, LocalizeConfig(classes="label")), [drawn(1)], class_index=None)
    assert (row["image_id"], row["status"]) == (0, "no_label")


def test_no_more_classes_are_predicted_than_there_are(bundle: Bundle) -> None:
    rows = run_stage(LocalizeStage(bundle, LocalizeConfig(classes="predicted")), [drawn(2)])
    assert [row["class_rank"] for row in rows] == [1, 2, 3, 4]
    assert sum(row["class_score"] for row in rows) == pytest.approx(1, abs=1e-4)


def test_an_images_rows_do_not_depend_on_its_batch(localize: LocalizeStage) -> None:
    fetched = [drawn(i) for i in range(4)]
    rows = [manifest_row(i, i) for i in range(4)]
    together = localize(rows, fetched)
    backwards = localize(rows[::-1], fetched[::-1])
    alone = [row for i in range(4) for row in localize(rows[i : i + 1], fetched[i : i + 1])]
    assert together == alone
    assert sorted(backwards, key=lambda row: row["image_id"]) == together


def test_boxes_lie_in_the_decoded_image(localize: LocalizeStage) -> None:
    images = [Image.open(io.BytesIO(drawn(3))), Image.new("L", (1, 1)), Image.new("CMYK", (3, 400))]
    stream = io.BytesIO()
    images[2].save(stream, "JPEG")
    rows = run_stage(localize, [png(images[0]), png(images[1]), stream.getvalue()])
    assert len(rows) == 9
    for row in rows:
        width, height = images[row["image_id"]].size
        assert (row["width_px"], row["height_px"]) == (width, height)
        for box in ([row[side] for side in ("xmin", "ymin", "xmax", "ymax")], row["cam_xyxy"]):
            assert 0 <= box[0] <= box[2] <= width
            assert 0 <= box[1] <= box[3] <= height
        assert 0 <= row["confidence"] <= 1


def test_the_box_is_what_the_scores_say(bundle: Bundle, localize: LocalizeStage) -> None:
    data = drawn(1)
    [scored] = run_stage(ScoreStage(bundle, LocalizeConfig(classes="label")), [data])
    [boxed] = [row for row in run_stage(localize, [data]) if row["class_rank"] == 0]
    scores = torch.from_numpy(np.asarray(scored["scores"]))[None]
    [[left, top, right, bottom]] = random_localizer().boxes(scores, torch.tensor([1])).tolist()
    found = [boxed[side] for side in ("xmin", "ymin", "xmax", "ymax")]
    width, height = boxed["width_px"], boxed["height_px"]
    assert scores.shape == (1, NUM_SQUARES)
    # The scorer multiplies one class here and three there, so the last bits may differ.
    expected = [left * width, top * height, right * width, bottom * height]
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("stage", [ScoreStage, LocalizeStage])
def test_rows_fit_their_table(bundle: Bundle, stage: type[ScoreStage]) -> None:
    one = stage(bundle, LocalizeConfig())
    table = schema.rows_to_table(run_stage(one, [drawn(1), b""]), one.schema)
    assert isinstance(table, pa.Table)
    assert table["status"].to_pylist() == [*["ok"] * 5, "empty"]
    schema.check_table(table.schema, one.schema, "test")


def test_without_a_threshold_there_is_no_cam(bundle: Bundle) -> None:
    stage = LocalizeStage(replace(bundle, baselines={}), LocalizeConfig(classes="label"))
    [row] = run_stage(stage, [drawn(1)])
    assert row["cam_xyxy"] is None
    assert row["status"] == "ok"


@pytest.mark.parametrize(
    ("missing", "stage", "classes"),
    [
        (SCORER, ScoreStage, "label"),
        (classifier_part(0), ScoreStage, "both"),
        (LOCALIZER, LocalizeStage, "label"),
        (classifier_part(0), LocalizeStage, "label"),
    ],
)
def test_an_untrained_part_is_missed_before_any_image(
    bundle: Bundle, missing: str, stage: type[ScoreStage], classes: str
) -> None:
    parts = {name: part for name, part in bundle.parts.items() if name != missing}
    with pytest.raises(ModelError, match=f"has no {missing}"):
        stage(replace(bundle, parts=parts), LocalizeConfig(classes=classes))


def test_scores_by_label_need_no_classifier(bundle: Bundle) -> None:
    scorer_alone = replace(bundle, parts={SCORER: bundle.parts[SCORER]})
    stage = ScoreStage(scorer_alone, LocalizeConfig(classes="label"))
    [row] = run_stage(stage, [drawn(1)])
    assert (row["class_rank"], row["class_index"], row["status"]) == (0, 1, "ok")


def resident_bytes() -> int:
    """Memory of this process that is in RAM now (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["exact", "pyramid"])
def test_memory_is_flat_over_ten_thousand_images(bundle: Bundle, mode: str) -> None:
    stage = LocalizeStage(bundle, LocalizeConfig(mode=mode))
    number = 10_000
    some = [drawn(i) for i in range(8)]
    rows = [manifest_row(i) for i in range(number)]
    used = []
    for i, image in enumerate(stage.by_image(rows, [some[i % 8] for i in range(number)])):
        assert image[0]["status"] == "ok"
        if i in (999, number - 1):
            used.append(resident_bytes())
    print(f"{mode}: {used[0] / 2**20:.0f} MiB after 1,000 images, {used[1] / 2**20:.0f} at the end")
    assert used[1] - used[0] < 32 * 2**20
