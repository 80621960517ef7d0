"""Initial weights from public files: torchvision's by name, a .pth, an Inception-BN .npz."""

import hashlib
import io
import logging
import pickle
import tokenize
import zipfile
from collections.abc import Callable
from dataclasses import replace
from typing import IO

import numpy as np
import torch
from torch import Tensor

from cropscore_ray import storage
from cropscore_ray.config.sections import NetworkConfig, TrainConfig
from cropscore_ray.errors import ConfigError, ModelError
from cropscore_ray.models.googlenet import Network, make_network

logger = logging.getLogger(__name__)

# What torch.load, np.load and a download raise for a file that is damaged or of another kind
# (seen on truncated, empty, text, HTML and bit-flipped files). OSError covers urllib's errors.
_READ_ERRORS = (
    OSError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    tokenize.TokenError,
    zipfile.BadZipFile,
)

_INCEPTION_BN = "inception-bn:"
_FORMS = "torchvision:IMAGENET1K_V1, FILE.pth or inception-bn:FILE.npz"


def adapt_config(config: TrainConfig) -> TrainConfig:
    """Return the config with the architecture and preprocessing that `classifier.init` implies.

    torchvision's GoogLeNet weights are a TensorFlow port that wants (x - 0.5) / 0.5;
    torchvision does that behind `transform_input`.

    Raises:
        ConfigError: if `classifier.init` has none of the known forms.
    """
    init = config.classifier.init
    if init is None:
        return config
    if init.startswith("torchvision:"):
        half = (0.5, 0.5, 0.5)
        return replace(
            config,
            network=NetworkConfig(architecture="googlenet"),
            preprocess=replace(config.preprocess, mean=half, std=half),
        )
    if not init.startswith(_INCEPTION_BN) and not init.endswith((".pth", ".pt")):
        raise ConfigError(f"classifier.init is {init!r}, but it must be {_FORMS}")
    # Workers have another working directory.
    prefix = _INCEPTION_BN if init.startswith(_INCEPTION_BN) else ""
    uri = storage.absolute_uri(init.removeprefix(prefix))
    config = replace(config, classifier=replace(config.classifier, init=f"{prefix}{uri}"))
    if prefix:
        config = replace(config, network=NetworkConfig(architecture="inception-bn"))
    return config


def _init_file(init: str | None) -> str | None:
    """Return the URI of the file of weights; None for torchvision's and for none."""
    if init is None or init.startswith("torchvision:"):
        return None
    return init.removeprefix(_INCEPTION_BN)


def require_init(init: str | None) -> None:
    """Raise ModelError if `classifier.init` is a file that is not there."""
    uri = _init_file(init)
    if uri and not storage.exists(uri):
        raise ModelError(f"no weights file {uri}", hint=f"classifier.init takes {_FORMS}")


def init_digest(init: str | None) -> str | None:
    """Return a hash of a file of weights, which may change under its name; None without a file."""
    uri = _init_file(init)
    return hashlib.sha256(storage.read_bytes(uri)).hexdigest() if uri else None


def initial_network(config: TrainConfig, num_classes: int) -> Network:
    """Return a network with the weights that `classifier.init` names.

    A last layer for another number of classes is left out and begins at random.

    Raises:
        ModelError: if the file is missing, damaged or of another architecture.
        ConfigError: if the last layer would stay at random, as it is not trained.
    """
    network = make_network(config.network, num_classes)
    init = config.classifier.init
    if init is not None:
        arrays = _read_arrays(init)
        _load(network, arrays, init)
        if not config.classifier.epochs:
            _require_last_layer(arrays, num_classes, init)
    return network


def _require_last_layer(arrays: dict[str, Tensor], num_classes: int, init: str) -> None:
    sizes = [len(arrays[name]) if name in arrays else 0 for name in ("fc.weight", "fc.bias")]
    if sizes != [num_classes, num_classes]:
        raise ConfigError(
            f"{init} has a last layer for {min(sizes) or 'no'} classes, not for the manifest's "
            f"{num_classes}, and with classifier.epochs=0 none is trained",
            hint="train it: --set classifier.epochs=10",
        )


def _read_arrays(init: str) -> dict[str, Tensor]:
    if init.startswith("torchvision:"):
        # Imported where it is used: it takes seconds of every process that starts.
        from torchvision.models import GoogLeNet_Weights

        name = init.removeprefix("torchvision:")
        try:
            weights = GoogLeNet_Weights[name]
        except KeyError:
            known = ", ".join(weight.name for weight in GoogLeNet_Weights)
            raise ModelError(f"torchvision has no GoogLeNet weights {name!r}", hint=known) from None
        return _explained_read(name, lambda: dict(weights.get_state_dict(check_hash=True)))
    uri = init.removeprefix(_INCEPTION_BN)
    file = io.BytesIO(storage.read_bytes(uri))
    if init.startswith(_INCEPTION_BN):
        return _explained_read(uri, lambda: _read_inception_bn(file))
    return _explained_read(
        uri, lambda: dict(torch.load(file, map_location="cpu", weights_only=True))
    )


def _explained_read(name: str, read: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        return read()
    except _READ_ERRORS as error:
        reason = (str(error).splitlines() or ["it ends too early"])[0][:200]
        raise ModelError(
            f"cannot read weights {name}: {type(error).__name__}: {reason}",
            hint="is the file whole, and of the kind that its name says?",
        ) from error


def _read_inception_bn(file: IO[bytes]) -> dict[str, Tensor]:
    with np.load(file) as arrays:
        tensors = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays}
    tensors["fc.weight"] = tensors.pop("linear.weight").flatten(1)
    tensors["fc.bias"] = tensors.pop("linear.bias")
    return tensors


def _load(network: Network, arrays: dict[str, Tensor], init: str) -> None:
    # Auxiliary heads serve training only, and torchvision's were never trained.
    arrays = {name: value for name, value in arrays.items() if not name.startswith("aux")}
    own = network.state_dict()
    for name in ("fc.weight", "fc.bias"):
        if name in arrays and arrays[name].shape != own[name].shape:
            sizes = arrays.pop(name).shape[0], own[name].shape[0]
            logger.warning(
                "%s: %s is for %d classes, not %d: it begins at random", init, name, *sizes
            )
    problems = _misfits(own, arrays)
    if problems:
        raise ModelError(
            f"{init} does not fit the network {type(network).__name__}: {'; '.join(problems)}",
            hint="choose another --set network.architecture or network.width",
        )
    network.load_state_dict(arrays, strict=False)


def _misfits(own: dict[str, Tensor], arrays: dict[str, Tensor]) -> list[str]:
    """Return why arrays cannot be the weights of a network; a new `fc` is no reason."""
    optional = [name for name in own if name.startswith("fc.") or name.endswith("batches_tracked")]
    shared = own.keys() & arrays.keys()
    misfits = {
        "missing": own.keys() - arrays.keys() - {*optional},
        "unknown": arrays.keys() - own.keys(),
        "of another shape": {name for name in shared if own[name].shape != arrays[name].shape},
    }
    return [f"{len(names)} {how}, e.g. {min(names)}" for how, names in misfits.items() if names]
