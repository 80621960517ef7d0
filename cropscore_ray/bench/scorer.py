"""The crop scorer against the plain way, good practice and its own bare networks."""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cropscore_ray import grid
from cropscore_ray.bench.measuring import Run
from cropscore_ray.bulk.predict import ScoreStage
from cropscore_ray.config.bulk import LocalizeConfig
from cropscore_ray.config.sections import NetworkConfig, TrainConfig
from cropscore_ray.datasets.drawn import CLASS_NAMES, draw_image
from cropscore_ray.images.crop import crop, normalize
from cropscore_ray.images.decode import decode
from cropscore_ray.models.bundle import SCORER, Bundle, load_bundle, save_part
from cropscore_ray.models.googlenet import make_network
from cropscore_ray.models.inference import best_dtype
from cropscore_ray.models.scorer import CropScorer
from cropscore_ray.schema import ImageClass

PHOTO_PX = (500, 375)
_SEED = 14
_JPEG_QUALITY = 92


def photos(number: int) -> list[bytes]:
    """Return drawn images as JPEG files of the usual size of ImageNet's."""
    files = []
    for i in range(number):
        image, _ = draw_image(np.random.default_rng((_SEED, i)), i % len(CLASS_NAMES))
        stream = io.BytesIO()
        image.resize(PHOTO_PX, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=_JPEG_QUALITY)
        files.append(stream.getvalue())
    return files


def random_bundle(uri: str) -> Bundle:
    """Return a bundle at `uri` whose scorer is GoogLeNet with random weights, 1,000 classes."""
    config = TrainConfig(recipe="bench", network=NetworkConfig())
    classes = [ImageClass(id=str(i), name=str(i)) for i in range(1000)]
    torch.manual_seed(_SEED)
    network = make_network(config.network, len(classes)).eval()
    bundle = Bundle(uri=uri, config=config, classes=classes, parts={}, baselines={})
    return save_part(bundle, SCORER, dict(network.state_dict()), metrics={})


@contextmanager
def contestants(bundle_uri: str) -> Iterator[dict[str, Run]]:
    """Yield five ways to 140 scores an image from its encoded bytes, slowest first.

    naive: a crop after the other with Pillow, batches of one, float32, the network as trained.
    good_practice: Pillow on all cores, one batch of 140, channels last, the best dtype.
    exact, pyramid: the engine, as a bulk run calls it. forward_only: exact's network alone,
    on crops that are there already.

    Each has a process of its own, since threads and memory of one would slow another: naive
    took 1.6 times as long beside an engine.
    """
    with ExitStack() as stack:
        runs: dict[str, Run] = {}
        for name in _CONTESTANTS:
            pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (name, bundle_uri))
            stack.enter_context(pool)
            runs[name] = lambda pool=pool: pool.submit(_go).result()  # type: ignore[misc]
        yield runs


_run: Run | None = None  # of a contestant's own process


def _begin(name: str, bundle_uri: str) -> None:
    global _run
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _run = _CONTESTANTS[name](load_bundle(bundle_uri), device)


def _go() -> int:
    assert _run is not None
    return _run()


def _naive(bundle: Bundle, device: torch.device) -> Run:
    network = bundle.network(SCORER).to(device)
    [data] = photos(1)

    @torch.inference_mode()
    def run() -> int:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for box in grid.square_boxes(*image.size):
            crop_1SS3 = _cut(image, box, bundle.preprocess.input_px)[None].to(device)
            normal = normalize(crop_1SS3, bundle.preprocess, torch.float32)
            float(network(normal.contiguous())[0, 0])
        return 1

    return run


def _cut(image: Image.Image, box: Any, side: int) -> Tensor:
    crop = image.resize((side, side), Image.Resampling.BILINEAR, box=tuple(box))
    return torch.from_numpy(np.array(crop))


def _good_practice(bundle: Bundle, device: torch.device) -> Run:
    dtype, side = best_dtype(device), bundle.preprocess.input_px
    network = bundle.network(SCORER).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pool = ThreadPoolExecutor(os.cpu_count())
    files = photos(8 if device.type == "cuda" else 1)

    @torch.inference_mode()
    def run() -> int:
        for data in files:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            cut = partial(_cut, image, side=side)
            batch = torch.stack(list(pool.map(cut, grid.square_boxes(*image.size)))).to(device)
            logits_NC = network(normalize(batch, bundle.preprocess, dtype))
            logits_NC[:, 0].float().cpu()
        return len(files)

    return run


def _engine(mode: str, num_images: int, bundle: Bundle, device: torch.device) -> Run:
    stage = ScoreStage(bundle, LocalizeConfig(mode=mode, classes="label"))
    files = photos(num_images * (16 if device.type == "cuda" else 1))
    rows = [{"image_id": i, "class_index": 0} for i in range(len(files))]

    def run() -> int:
        scored = stage(rows, list(files))
        assert [row["status"] for row in scored] == ["ok"] * len(files)
        return len(files)

    return run


def _forward_only(bundle: Bundle, device: torch.device) -> Run:
    """Return the engine's own passes over crops that are there, cut and normalized."""
    engine = CropScorer(bundle, mode="exact", device=device).network(SCORER)
    pixels = decode(photos(1)[0])
    height, width = pixels.shape[:2]
    num_images = 8 if device.type == "cuda" else 2
    crops_NSS3 = crop(pixels, grid.square_boxes(width, height), engine.preprocess.input_px)
    batches = [
        normalize(batch.to(device), bundle.preprocess, engine.dtype)
        for batch in torch.split(crops_NSS3.repeat(num_images, 1, 1, 1), engine.batch)
    ]
    forward = engine.compiled(lambda batch: engine.network.features(batch).float().mean((2, 3)))

    @torch.inference_mode()
    def one_pass(batch: Tensor) -> None:
        forward(batch)

    def run() -> int:
        engine.each(one_pass, batches)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return num_images

    return run


_CONTESTANTS: dict[str, Callable[[Bundle, torch.device], Run]] = {
    "naive": _naive,
    "good_practice": _good_practice,
    "exact": partial(_engine, "exact", 4),
    "forward_only": _forward_only,
    "pyramid": partial(_engine, "pyramid", 8),
}
