"""The model bundle: a folder with model.json and one safetensors file per part.

Parts are `classifier-0` … `classifier-N`, `scorer` and `localizer`, added one by one as
training goes on. Nothing in a bundle is executed when it is loaded; a part whose bytes
do not match model.json is refused.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from cropscore_ray import storage
from cropscore_ray.config.bulk import LocalizeConfig
from cropscore_ray.config.overrides import from_dict, to_dict, to_identity
from cropscore_ray.config.sections import PreprocessConfig, TrainConfig
from cropscore_ray.errors import ConfigError, ModelError
from cropscore_ray.grid import CELLS, NUM_SQUARES
from cropscore_ray.schema import ImageClass

# What only reads model.json, as a bulk run's command does, does not wait for PyTorch.
if TYPE_CHECKING:
    from torch import Tensor

    from cropscore_ray.models.googlenet import Network

FORMAT = 2
SCORER = "scorer"
LOCALIZER = "localizer"


def classifier_part(member: int) -> str:
    """Return the name of one classification network's part."""
    return f"classifier-{member}"


def required_parts(command: str, config: LocalizeConfig) -> list[str]:
    """Return the parts without which score or localize cannot work.

    Boxes come with that of the class activation map, a baseline, which is classifier 0's.
    """
    if command == "localize":
        return [classifier_part(0), SCORER, LOCALIZER]
    return [SCORER] if config.classes == "label" else [SCORER, classifier_part(0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle's model.json; `network` and `tensors` read the parts."""

    uri: str
    config: TrainConfig
    classes: list[ImageClass]
    parts: dict[str, dict[str, Any]]
    baselines: dict[str, Any]

    @property
    def preprocess(self) -> PreprocessConfig:
        """How pixels enter this model's networks."""
        return self.config.preprocess

    @property
    def num_members(self) -> int:
        """How many classification networks the bundle holds."""
        return sum(name.startswith("classifier-") for name in self.parts)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that changes what the model computes."""
        identity = {
            "format": FORMAT,
            "mode": self.config.mode,
            "network": to_identity(self.config.network),
            "preprocess": to_identity(self.config.preprocess),
            "normalization": self.config.localizer.normalization if LOCALIZER in self.parts else "",
            "classes": [asdict(image_class) for image_class in self.classes],
            "parts": {name: part["sha256"] for name, part in sorted(self.parts.items())},
            "baselines": self.baselines,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def require(self, *names: str) -> None:
        """Raise ModelError unless these parts have been trained."""
        for name in names:
            if name not in self.parts:
                stage = name.split("-")[0]
                raise ModelError(
                    f"the model {self.uri} has no {name}",
                    hint=f"run: cropscore train {stage} --model {self.uri} --data MANIFEST",
                )

    def tensors(self, name: str) -> "dict[str, Tensor]":
        """Read one part; ModelError if it is absent or its bytes are not those of model.json."""
        self.require(name)
        where = _part_uri(self.uri, name)
        # A worker that starts in the midst of a run may find the store away.
        data = storage.persistently(where, lambda: storage.read_bytes(where))
        if hashlib.sha256(data).hexdigest() != self.parts[name]["sha256"]:
            raise ModelError(
                f"{where} is not the file that model.json describes",
                hint="copy the bundle again, or train this part again",
            )
        import safetensors.torch

        try:
            return safetensors.torch.load(data)
        except SafetensorError as error:
            raise ModelError(f"{where}: {error}") from error

    def network(self, name: str) -> "Network":
        """Return a trained network, on the CPU in float32 and evaluation mode."""
        from cropscore_ray.models.googlenet import make_network
        from cropscore_ray.models.heads import OverlapHead

        network = make_network(self.config.network, len(self.classes))
        width = self.config.scorer.overlap_width
        if name == SCORER and width:
            network.overlap = OverlapHead(network.fc.in_features, width)
        network.load_state_dict(self.tensors(name))
        return network.eval()


def _part_uri(uri: str, name: str) -> str:
    return storage.join(uri, f"{name}.safetensors")


def _model_json(uri: str) -> str:
    return storage.join(uri, "model.json")


def is_bundle(uri: str) -> bool:
    """Return whether a model.json is there."""
    return storage.exists(_model_json(uri))


def load_bundle(uri: str) -> Bundle:
    """Read model.json; ModelError if there is none or another version wrote it."""
    uri = storage.absolute_uri(uri)
    if not is_bundle(uri):
        raise ModelError(
            f"no model bundle at {uri}",
            hint="a bundle is a folder with model.json; `cropscore train` makes one",
        )
    values = storage.read_json(_model_json(uri))
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT:
        raise ModelError(f"{uri} has bundle format {version!r}; this version reads {FORMAT}")
    try:
        return Bundle(
            uri=uri,
            config=from_dict(TrainConfig, values["config"]),
            classes=[ImageClass(**fields) for fields in values["classes"]],
            parts=values["parts"],
            baselines=values["baselines"],
        )
    except (KeyError, TypeError, ConfigError) as error:
        raise ModelError(f"{_model_json(uri)} is damaged: {error}") from error


def save_bundle(bundle: Bundle) -> None:
    """Write model.json."""
    values = {
        "format": FORMAT,
        "fingerprint": bundle.fingerprint,
        "recipe": bundle.config.recipe,
        "mode": bundle.config.mode,
        "classes": [asdict(image_class) for image_class in bundle.classes],
        "preprocess": asdict(bundle.preprocess),
        "network": asdict(bundle.config.network),
        "grid": {"cells": CELLS, "squares": NUM_SQUARES, "order": "size, row, column"},
        "normalization": bundle.config.localizer.normalization,
        "parts": bundle.parts,
        "baselines": bundle.baselines,
        "config": to_dict(bundle.config),
    }
    storage.write_json(_model_json(bundle.uri), values)


def save_part(
    bundle: Bundle,
    name: str,
    tensors: "dict[str, Tensor]",
    *,
    metrics: dict[str, Any],
    baselines: dict[str, Any] | None = None,
) -> Bundle:
    """Write one part and then model.json with its hash; return the bundle with it."""
    import safetensors.torch

    data = safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()})
    storage.write_bytes(_part_uri(bundle.uri, name), data)
    part = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "metrics": metrics}
    saved = replace(
        bundle,
        parts={**bundle.parts, name: part},
        baselines={**bundle.baselines, **(baselines or {})},
    )
    save_bundle(saved)
    return saved
