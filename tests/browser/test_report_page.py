"""The report in a real browser: it renders, sorts, fits a phone, and breaks nothing."""

import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cropscore_ray import schema
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.evaluation.metrics import evaluate
from cropscore_ray.report.page import RunInputs, build_report
from cropscore_ray.schema import ImageClass

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")

CLASSES = [ImageClass(id=f"n{i}", name=f"a kind of thing with a long name {i}") for i in range(30)]
PHONE_PX = 400
NUM_IMAGES = 120

# Runs in the page: what a person would see at once, as JSON for the test.
PROBE = """
<script>
window.onload = () => {
  const table = document.querySelector("table.sortable");
  const column = index => [...table.tBodies[0].rows].map(row => row.children[index].dataset.value);
  const click = index => table.querySelectorAll("thead button")[index].click();
  click(1);
  const ascending = column(1);
  click(1);
  const images = [...document.images];
  const found = {
    errors: window.seenErrors,
    broken: images.filter(image => !image.complete || !image.naturalWidth).length,
    images: images.length,
    withoutAlt: images.filter(image => !image.alt).length,
    ascending, descending: column(1),
    ariaSort: table.querySelectorAll("thead th")[1].getAttribute("aria-sort"),
    widthPx: document.documentElement.scrollWidth,
    photoPx: document.querySelector(".photo").getBoundingClientRect().width,
    paper: getComputedStyle(document.body).backgroundColor,
    requests: performance.getEntriesByType("resource").map(entry => entry.name)
      .filter(name => !name.startsWith("data:")),
  };
  parent.postMessage(found, "*");
  if (parent === window) show(found);
};
</script>
"""
CATCH = "<script>window.seenErrors = []; window.onerror = e => { seenErrors.push(e); };</script>"
SHOW = """
<script>
function show(found) {
  const pre = document.createElement("pre");
  pre.id = "probe";
  pre.textContent = JSON.stringify(found);
  document.body.append(pre);
}
</script>
"""


def _image_bytes(uri: str) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((240, 160)).save(out, "JPEG")
    return out.getvalue()


def _scores(data: bytes, class_index: int) -> NDArray[np.floating]:
    return np.asarray(np.sin(np.arange(140.0)))


@pytest.fixture(scope="module")
def page() -> str:
    uris = [f"s3://bucket/a/rather/deep/folder/of/images/{i:06d}.jpg" for i in range(NUM_IMAGES)]
    whole = {"width_px": 240, "height_px": 160}
    images: list[dict[str, Any]] = [
        {"image_id": i, "image_uri": uri, "class_index": (i * i) % 30, "split": "val", **whole}
        | {"gt_boxes": [[20, 20, 200, 140]]}
        for i, uri in enumerate(uris)
    ]
    rows = [
        {"image_id": i, "image_uri": uri, "class_rank": 0, "class_index": (i * i) % 30, **whole}
        | {"class_name": CLASSES[(i * i) % 30].name, "confidence": 0.5, "status": "ok"}
        | {"xmin": 20, "ymin": 20, "xmax": 25 + i, "ymax": 140}
        for i, uri in enumerate(uris)
    ]
    manifest = Manifest(table=schema.rows_to_table(images, schema.MANIFEST), classes=CLASSES)
    predictions = schema.rows_to_table(rows, schema.PREDICTIONS)
    return build_report(
        RunInputs(
            run={"source_uri": "s3://bucket/a/rather/deep/folder/of/images", "split": "val"},
            predictions=predictions,
            manifest=manifest,
            evaluation=evaluate(predictions, manifest, constant_box=[0.1, 0.1, 0.9, 0.9]),
        ),
        read_image=_image_bytes,
        score_squares=_scores,
    )


def _dump_dom(file: Path, *options: str) -> str:
    assert BROWSER is not None
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={file.parent / 'profile'}",
        "--virtual-time-budget=5000",
        *options,
    ]
    done = subprocess.run(
        [BROWSER, *flags, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _probe(page: str, folder: Path, *options: str, width_px: int | None = None) -> dict[str, Any]:
    """Open the page, in a frame of the given width if any, and return what PROBE found."""
    file = folder / "page.html"
    probed = page.replace("<head>", "<head>" + CATCH).replace("</body>", SHOW + PROBE + "</body>")
    file.write_text(probed, encoding="utf-8")
    if width_px is not None:
        frame = f'<iframe src="page.html" style="width:{width_px}px;height:900px"></iframe>'
        listen = "<script>onmessage = event => show(event.data);</script>"
        file = folder / "frame.html"
        file.write_text(f"<!doctype html><body>{SHOW}{listen}{frame}</body>", encoding="utf-8")
    dom = _dump_dom(file, "--allow-file-access-from-files", *options)
    match = re.search(r'<pre id="probe">(.*?)</pre>', dom, flags=re.S)
    assert match is not None, dom[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found


def test_the_page_renders_without_errors_requests_or_broken_images(
    page: str, tmp_path: Path
) -> None:
    found = _probe(page, tmp_path)
    assert found["errors"] == []
    assert found["requests"] == []
    assert (found["images"], found["broken"], found["withoutAlt"]) == (18, 0, 0)
    assert found["photoPx"] > 200


def test_a_click_on_a_heading_sorts_by_number_and_a_second_one_turns_it(
    page: str, tmp_path: Path
) -> None:
    found = _probe(page, tmp_path)
    counts = [int(count) for count in found["ascending"]]
    assert counts == sorted(counts)
    assert min(counts) < 10 <= max(counts)  # as text, 16 would come before 4
    assert [int(count) for count in found["descending"]] == sorted(counts, reverse=True)
    assert found["ariaSort"] == "descending"


def test_the_page_fits_a_phone(page: str, tmp_path: Path) -> None:
    found = _probe(page, tmp_path, width_px=PHONE_PX)
    assert found["errors"] == []
    assert found["widthPx"] <= PHONE_PX
    assert 200 < found["photoPx"] <= PHONE_PX


def test_the_page_is_dark_where_the_reader_prefers_it(page: str, tmp_path: Path) -> None:
    light = _probe(page, tmp_path, "--blink-settings=preferredColorScheme=1")
    dark = _probe(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert light["paper"] == "rgb(251, 251, 249)"
    assert dark["paper"] == "rgb(19, 21, 25)"
