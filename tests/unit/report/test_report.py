import base64
import dataclasses
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cropscore_ray import schema, storage
from cropscore_ray.config.sections import TrainConfig
from cropscore_ray.datasets.manifest import Manifest, write_manifest
from cropscore_ray.errors import DataError, ImageError, ModelError
from cropscore_ray.evaluation.metrics import evaluate
from cropscore_ray.jobs import report as report_job
from cropscore_ray.models.bundle import Bundle, save_bundle
from cropscore_ray.report import charts
from cropscore_ray.report.cases import Cases, find_cases
from cropscore_ray.report.page import RunInputs, build_report
from cropscore_ray.schema import ImageClass

CLASSES = [ImageClass(id="n1", name="owl"), ImageClass(id="n2", name="cup")]
RUN: dict[str, Any] = {
    "complete": True,
    "source_uri": "s3://bucket/birds",
    "split": "val",
    "model_uri": "s3://bucket/model",
    "identity": {"model": "f1n9e7p71n7"},
    "times": {"wall_s": 90.0},
}
SIDE = 100
Scorer = Callable[[bytes, int], NDArray[np.floating]]


def image_row(image_id: int, **fields: Any) -> dict[str, Any]:
    uri = f"s3://bucket/{image_id}.jpg"
    whole = {"width_px": SIDE, "height_px": SIDE, "class_index": 0, "split": "val"}
    return {"image_id": image_id, "image_uri": uri, **whole, **fields}


def box_row(image_id: int, box: list[float], *, rank: int = 0, **fields: Any) -> dict[str, Any]:
    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    given = {"class_rank": rank, "class_name": "owl", "confidence": 0.5, "status": "ok"}
    return {**image_row(image_id), **sides, **given, **fields}


def failed_row(image_id: int, reason: str = "12 bytes are missing") -> dict[str, Any]:
    return {**image_row(image_id), "status": "undecodable", "error": reason}


def inputs(
    images: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    classes: list[ImageClass] = CLASSES,
    **facts: Any,
) -> RunInputs:
    manifest = Manifest(table=schema.rows_to_table(images, schema.MANIFEST), classes=classes)
    known = set(schema.PREDICTIONS.names)
    kept = [{key: value for key, value in row.items() if key in known} for row in rows]
    predictions = schema.rows_to_table(kept, schema.PREDICTIONS)
    evaluation = evaluate(predictions, manifest, split="val", constant_box=[0.0, 0.0, 1.0, 0.5])
    run = RUN | facts
    return RunInputs(run=run, predictions=predictions, manifest=manifest, evaluation=evaluation)


def four_images() -> RunInputs:
    """IoU 1, 0.5 (right: the rule is >=), 0 for a failed image, and one image without labels."""
    images = [
        image_row(1, gt_boxes=[[0, 0, 20, 20]]),
        image_row(2, gt_boxes=[[0, 0, 100, 100], [0, 0, 10, 10]], class_index=1),
        image_row(3, gt_boxes=[[0, 0, 50, 50]]),
        image_row(4, gt_boxes=None, class_index=None),
    ]
    rows = [
        box_row(1, [0, 0, 20, 20]),
        box_row(2, [0, 0, 100, 50], class_index=1, class_name="cup"),
        failed_row(3),
        box_row(4, [0, 0, 1, 1], rank=1, confidence=0.25),
    ]
    return inputs(images, rows)


def cases_of(given: RunInputs) -> Cases:
    box = given.evaluation.constant_box
    return find_cases(given.predictions, given.manifest, split="val", constant_box=box)


def read_image(uri: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(out, "JPEG")
    return out.getvalue()


def score_squares(data: bytes, class_index: int) -> NDArray[np.floating]:
    return np.arange(140, dtype=np.float32)


def page_of(given: RunInputs, score: Scorer | None = score_squares) -> str:
    return build_report(given, read_image=read_image, score_squares=score)


def text_of(page: str) -> str:
    body = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_cases_hold_the_overlap_of_each_image() -> None:
    cases = cases_of(four_images())
    np.testing.assert_allclose(cases.iou, [1.0, 0.5, 0.0, np.nan])
    np.testing.assert_allclose(cases.area_fraction, [0.04, 1.0, 0.25, np.nan])
    assert cases.row.tolist() == [0, 1, -1, -1]
    assert cases.gt_boxes(1) == [[0, 0, 100, 100], [0, 0, 10, 10]]
    assert cases.gt_boxes(3) == []


def test_cases_agree_with_the_evaluation() -> None:
    given = four_images()
    gt_known = given.evaluation.overall.error.gt_known
    cases = cases_of(given)
    assert gt_known is not None
    assert gt_known.fraction == pytest.approx(1 / 3)
    assert np.mean(cases.iou[cases.is_boxed] < 0.5) == pytest.approx(gt_known.fraction)


def test_cases_without_a_given_class_are_the_first_guesses() -> None:
    rows = [box_row(1, [0, 0, 9, 9], rank=2), box_row(1, [0, 0, 100, 60], rank=1)]
    cases = cases_of(inputs([image_row(1, gt_boxes=[[0, 0, 100, 100]])], rows))
    assert not cases.is_class_known
    assert cases.iou.tolist() == pytest.approx([0.6])


def test_errors_by_size_fall_into_half_open_bins() -> None:
    rows = charts.rows_by_size(cases_of(four_images()), ["gt_known", "whole_image"])
    assert [row.num_images for row in rows] == [1, 0, 0, 1, 0, 1]  # 4 %, 25 % and 100 %
    errors = [row.errors["gt_known"] for row in rows]
    assert [rate and rate.fraction for rate in errors] == [0, None, None, 1, None, 0]
    whole = [row.errors["whole_image"] for row in rows]
    assert [rate and rate.fraction for rate in whole] == [1, None, None, 1, None, 0]


def test_classes_come_hardest_first_with_their_counts() -> None:
    rows = charts.rows_by_class(cases_of(four_images()), CLASSES, "gt_known")
    assert [(row.name, row.error.num_images, row.error.fraction) for row in rows] == [
        ("owl", 2, 0.5),
        ("cup", 1, 0.0),
    ]
    assert [row.mean_iou for row in rows] == [0.5, 0.5]


def test_the_page_shows_the_errors_beside_the_baselines() -> None:
    text = text_of(page_of(four_images()))
    assert "This run 33.3% ± 27.2 50.0% ± 35.4 0.0% ± 0.0" in text
    assert "Whole image 66.7%" in text
    assert "Best constant box 33.3%" in text
    assert "CAM – – –" in text
    assert "images; the tallest bar is 1." in text


def test_the_page_needs_nothing_from_outside() -> None:
    page = page_of(four_images())
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "@import" not in page
    assert "url(" not in page


def test_the_page_embeds_images_with_alt_text_and_boxes() -> None:
    page = page_of(four_images())
    encoded = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(encoded) == 2  # of the four images, one failed and one has no labels
    with Image.open(io.BytesIO(base64.b64decode(encoded[0]))) as image:
        assert image.size == (SIDE, SIDE)
    assert page.count("overlap with the true box 1.00") == 1
    assert page.count('class="pred" x="0" y="0"') + page.count('class="pred" x="0.0"') == 2


def test_the_same_inputs_give_the_same_page() -> None:
    assert page_of(four_images()) == page_of(four_images())


def test_failed_images_are_counted_and_listed_with_their_reason() -> None:
    text = text_of(page_of(four_images()))
    assert "undecodable 1 the bytes are not a whole image" in text
    assert "s3://bucket/3.jpg undecodable 12 bytes are missing" in text


def test_text_from_users_is_escaped() -> None:
    evil = "<script>alert('x')</script>"
    classes = [ImageClass(id=evil, name=evil)]
    row = box_row(1, [0, 0, 50, 50], class_name=evil)
    images = [image_row(1, gt_boxes=[[0, 0, 50, 50]]), image_row(2, gt_boxes=[[0, 0, 50, 50]])]
    given = inputs(images, [row, failed_row(2, evil)], classes, note=evil)
    page = page_of(given)
    assert evil not in page
    assert page.count("&lt;script&gt;") >= 5


def test_a_run_without_labels_has_no_errors_but_a_gallery_by_confidence() -> None:
    images = [image_row(i, class_index=None) for i in range(3)]
    rows = [box_row(i, [0, 0, 9, 9], rank=1, confidence=0.1 + i / 4) for i in range(3)]
    text = text_of(page_of(inputs(images, rows)))
    assert "These images have no true boxes" in text
    assert "Errors beside the baselines" not in text
    assert text.index("confidence 0.60") < text.index("confidence 0.35")
    assert "Most confident" in text
    assert "Least confident" in text


def test_a_run_without_a_good_image_still_has_a_page() -> None:
    given = inputs([image_row(1, gt_boxes=[[0, 0, 50, 50]])], [failed_row(1)])
    text = text_of(page_of(given))
    assert "No image of this run has a box" in text
    assert "Localization error" not in text
    assert "undecodable 1" in text


def test_a_run_without_any_image_still_has_a_page() -> None:
    absent = image_row(1, gt_boxes=[[0, 0, 50, 50]])
    text = text_of(page_of(inputs([absent], [], complete=False)))
    assert "This run is not complete" in text
    assert "not done 1 the run has no row for it" in text


def test_a_run_of_predicted_classes_says_that_it_shows_first_guesses() -> None:
    rows = [box_row(1, [0, 0, 50, 50], rank=1)]
    text = text_of(page_of(inputs([image_row(1, gt_boxes=[[0, 0, 50, 50]])], rows)))
    assert "Localization error, one guess 0.0%" in text
    assert "the page shows the first guess" in text


def test_a_thousand_classes_are_all_listed_below_the_ten_hardest() -> None:
    classes = [ImageClass(id=f"n{i}", name=f"kind {i}") for i in range(1000)]
    images = [image_row(i, gt_boxes=[[0, 0, 50, 50]], class_index=i) for i in range(1000)]
    rows = [
        box_row(i, [0, 0, 50, 50 if i % 2 else 5], class_index=i, class_name=f"kind {i}")
        for i in range(1000)
    ]
    page = page_of(inputs(images, rows, classes))
    assert "Hardest 10 of 1000 classes." in page
    assert page.count("</th><td data-value=") == 10 + 10 + 1000
    assert len(page) < 2_000_000


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ImageError("missing", "no object"), "no longer reachable: no object"),
        (b"not an image", "can no longer be decoded: not an image any more"),
        (read_image("1.jpg")[:300], "can no longer be decoded"),
    ],
)
def test_an_image_that_is_gone_is_said_to_be_gone(answer: bytes | ImageError, words: str) -> None:
    def read(uri: str) -> bytes:
        if isinstance(answer, ImageError):
            raise answer
        return answer

    page = build_report(four_images(), read_image=read, score_squares=score_squares)
    assert text_of(page).count(words) == 2
    assert "<img" not in page


def test_without_a_model_the_page_says_so_once() -> None:
    text = text_of(page_of(four_images(), None))
    assert text.count("No score maps") == 1


def failing(data: bytes, class_index: int) -> NDArray[np.floating]:
    raise ModelError("the scorer is damaged")


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (failing, "No score maps: the scorer is damaged"),
        (lambda data, index: np.zeros(139), "did not return 140 finite scores"),
        (lambda data, index: np.full(140, np.nan), "did not return 140 finite scores"),
    ],
)
def test_a_model_that_fails_leaves_a_note_and_the_images(score: Scorer, words: str) -> None:
    given = inputs(
        [image_row(1, gt_boxes=[[0, 0, 50, 50]])], [box_row(1, [0, 0, 50, 50], class_index=0)]
    )
    page = page_of(given, score)
    assert words in text_of(page)
    assert page.count("<img") == 1


def test_facts_of_the_run_are_flattened_to_dotted_names_and_not_repeated() -> None:
    config = {"mode": "exact", "top_k": 5}
    given = four_images()
    identity = {"model": "f1n9e7p71n7", "config": config}
    run = RUN | {"config": config, "identity": identity}
    text = text_of(page_of(dataclasses.replace(given, run=run)))
    assert text.count("config.top_k 5") == 1
    assert "identity.model f1n9e7p71n7" in text
    assert "times.wall_s 90" in text
    assert "Time 1 min 30 s" in text


def write_run(folder: str, given: RunInputs, **fields: Any) -> None:
    storage.write_table(storage.join(folder, "predictions", "part-0.parquet"), given.predictions)
    write_manifest(storage.join(folder, "manifest"), given.manifest)
    absent = {"manifest_uri": storage.join(folder, "moved"), "model_uri": folder}
    record = {"format": 1, **RUN, "classes": [], **absent, **fields}
    storage.write_json(storage.join(folder, "run.json"), record)


def test_the_job_writes_the_page_into_the_run_folder(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path)
    write_run(folder, four_images())
    monkeypatch.setattr(report_job, "fetch_image", read_image)
    written = report_job.run(folder)
    text = text_of(storage.read_bytes(written).decode())
    assert written == storage.join(folder, "report.html")
    assert "This run 33.3%" in text
    assert f"There are no score maps: no model bundle at {folder}" in text


def test_the_job_draws_no_scores_of_another_model(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(tmp_path / "model")
    part = {"scorer": {"sha256": "", "bytes": 0, "metrics": {}}}
    config = TrainConfig(recipe="test")
    save_bundle(Bundle(uri=model, config=config, classes=CLASSES, parts=part, baselines={}))
    write_run(str(tmp_path), four_images(), model_uri=model)
    monkeypatch.setattr(report_job, "fetch_image", read_image)
    text = text_of(storage.read_bytes(report_job.run(str(tmp_path))).decode())
    assert "has changed since the run" in text


def test_the_job_uses_the_constant_box_of_the_run(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(str(tmp_path), four_images(), baselines={"constant_box": [0.0, 0.0, 0.2, 0.2]})
    monkeypatch.setattr(report_job, "fetch_image", read_image)
    out = str(tmp_path / "elsewhere" / "page.html")
    assert report_job.run(str(tmp_path), out=out) == out
    assert "Best constant box 66.7%" in text_of(storage.read_bytes(out).decode())


def test_the_job_refuses_a_folder_without_a_run(tmp_path: Any) -> None:
    storage.write_table(str(tmp_path / "part-0.parquet"), four_images().predictions)
    with pytest.raises(DataError, match=r"no run\.json here"):
        report_job.run(str(tmp_path))
