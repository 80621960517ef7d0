"""First weights: what each form of `init` implies, and how a wrong file is refused."""

import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cropscore_ray.config.overrides import with_settings
from cropscore_ray.config.sections import (
    ClassifierConfig,
    NetworkConfig,
    PreprocessConfig,
    TrainConfig,
)
from cropscore_ray.errors import ConfigError, ModelError
from cropscore_ray.models.googlenet import make_network
from cropscore_ray.models.pretrained import adapt_config, initial_network, require_init

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = NetworkConfig(architecture="googlenet-small", width=0.125)
GIVEN = ["classifier.epochs=0", "classifier.num_members=1"]


def config_with(init: str | None, network: NetworkConfig = SMALL) -> TrainConfig:
    return TrainConfig(recipe="test", network=network, classifier=ClassifierConfig(init=init))


def small_state(num_classes: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return dict(make_network(SMALL, num_classes).state_dict())


@pytest.fixture
def pth(tmp_path: Path) -> Callable[[object], str]:
    def save(value: object) -> str:
        torch.save(value, tmp_path / "weights.pth")
        return str(tmp_path / "weights.pth")

    return save


def test_without_init_the_config_and_the_seed_decide() -> None:
    config = config_with(None)
    assert adapt_config(config) == config
    torch.manual_seed(3)
    network = initial_network(config, 5)
    assert all(torch.equal(small_state()[name], one) for name, one in network.state_dict().items())


def test_torchvision_weights_bring_their_preprocessing() -> None:
    adapted = adapt_config(config_with("torchvision:IMAGENET1K_V1"))
    assert adapted.network == NetworkConfig(architecture="googlenet")
    assert adapted.preprocess.mean == adapted.preprocess.std == (0.5, 0.5, 0.5)


def test_an_inception_bn_file_brings_its_architecture(tmp_path: Path) -> None:
    (tmp_path / "some.npz").touch()
    adapted = adapt_config(config_with(f"inception-bn:{tmp_path}/some.npz"))
    assert adapted.network.architecture == "inception-bn"
    assert adapted.preprocess == PreprocessConfig()


def test_a_pth_is_for_the_networks_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "some.pth").touch()
    config = config_with(f"{tmp_path}/some.pth")
    assert adapt_config(config) == config


def test_a_path_is_made_absolute_since_workers_work_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some.npz").touch()
    monkeypatch.chdir(tmp_path)
    adapted = adapt_config(config_with("inception-bn:some.npz"))
    assert adapted.classifier.init == f"inception-bn:{tmp_path}/some.npz"


@pytest.mark.parametrize("init", ["some.onnx", "resnet:IMAGENET1K_V1", ""])
def test_another_form_of_init_is_refused(init: str) -> None:
    with pytest.raises(ConfigError, match=r"classifier\.init is .*, but it must be torchvision:"):
        adapt_config(config_with(init))


def test_a_pth_gives_its_weights(pth: Callable[[object], str]) -> None:
    state = small_state()
    torch.manual_seed(99)
    network = initial_network(config_with(pth(state)), 5)
    assert all(torch.equal(state[name], one) for name, one in network.state_dict().items())


def test_auxiliary_heads_are_passed_over(pth: Callable[[object], str]) -> None:
    state = {**small_state(), "aux1.fc1.weight": torch.zeros(3)}
    assert torch.equal(initial_network(config_with(pth(state)), 5).fc.weight, state["fc.weight"])


def test_a_classifier_of_other_classes_begins_at_random(
    pth: Callable[[object], str], caplog: pytest.LogCaptureFixture
) -> None:
    state = small_state(num_classes=9)
    with caplog.at_level(logging.WARNING):
        network = initial_network(config_with(pth(state)), 5)
    assert network.fc.weight.shape[0] == 5
    assert torch.equal(network.conv1.conv.weight, state["conv1.conv.weight"])
    assert "fc.weight is for 9 classes, not 5" in caplog.text


@pytest.mark.parametrize(("num_classes", "found"), [(9, "9"), (None, "no")])
def test_a_last_layer_that_would_stay_at_random_is_refused(
    pth: Callable[[object], str], num_classes: int | None, found: str
) -> None:
    state = small_state(num_classes or 5)
    if num_classes is None:
        state = {name: one for name, one in state.items() if not name.startswith("fc.")}
    config = with_settings(config_with(pth(state)), GIVEN)
    with pytest.raises(ConfigError, match=f"last layer for {found} classes, .* 5,") as caught:
        initial_network(config, 5)
    assert caught.value.hint == "train it: --set classifier.epochs=10"


def test_given_weights_that_fit_need_no_training(pth: Callable[[object], str]) -> None:
    state = small_state()
    network = initial_network(with_settings(config_with(pth(state)), GIVEN), 5)
    assert torch.equal(network.fc.weight, state["fc.weight"])


def test_inception_bn_arrays_keep_their_names(tmp_path: Path) -> None:
    config = NetworkConfig(architecture="inception-bn")
    state = make_network(config, 3).state_dict()
    arrays = {name: one.half().numpy() for name, one in state.items()}
    arrays["linear.weight"] = arrays.pop("fc.weight")[:, :, None, None]
    arrays["linear.bias"] = arrays.pop("fc.bias")
    np.savez(tmp_path / "weights.npz", **arrays)
    network = initial_network(config_with(f"inception-bn:{tmp_path / 'weights.npz'}", config), 3)
    for name, one in network.state_dict().items():
        assert torch.equal(one, state[name].half().float())


def refusal(init: str) -> str:
    with pytest.raises(ModelError) as caught:
        initial_network(config_with(init), 5)
    assert caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize("init", ["nowhere.pth", "inception-bn:nowhere.npz"])
def test_a_missing_file_is_named(init: str) -> None:
    with pytest.raises(ModelError, match=r"no weights file /.*/nowhere\.(pth|npz)"):
        require_init(adapt_config(config_with(init)).classifier.init)


def test_what_is_there_or_no_file_is_not_missing(tmp_path: Path) -> None:
    (tmp_path / "some.npz").touch()
    for init in (f"inception-bn:{tmp_path}/some.npz", "torchvision:IMAGENET1K_V1", None):
        require_init(init)


def test_an_unknown_torchvision_name_lists_the_known() -> None:
    with pytest.raises(ModelError, match="'V9'") as caught:
        initial_network(config_with("torchvision:V9"), 5)
    assert caught.value.hint == "IMAGENET1K_V1"


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"<!DOCTYPE html>" * 99],
    ids=["half", "empty", "html"],
)
@pytest.mark.parametrize("kind", ["pth", "npz"])
def test_a_damaged_file_is_refused(
    tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"weights.{kind}"
    if kind == "pth":
        torch.save(small_state(), path)
    else:
        np.savez(path, **{name: one.numpy() for name, one in small_state().items()})
    path.write_bytes(damage(path.read_bytes()))
    message = refusal(f"inception-bn:{path}" if kind == "npz" else str(path))
    assert message.startswith(f"cannot read weights {path}: ")
    assert "\n" not in message


def test_text_is_no_pth_and_other_arrays_are_no_inception_bn(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello " * 99)
    assert "cannot read weights" in refusal(str(tmp_path / "text.pth"))
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    assert "linear.weight" in refusal(f"inception-bn:{tmp_path / 'other.npz'}")


def test_a_pickled_object_is_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return exec, (f"open({str(tmp_path / 'hit')!r}, 'w')",)

    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb(), protocol=2))
    assert "cannot read weights" in refusal(str(tmp_path / "bomb.pth"))
    assert not (tmp_path / "hit").exists()


def test_weights_of_another_model_say_what_does_not_fit(pth: Callable[[object], str]) -> None:
    foreign = {"layer1.weight": torch.zeros(3)}
    assert "missing, e.g. conv1.bn.bias; 1 unknown, e.g. layer1.weight" in refusal(pth(foreign))
    assert ": 1 unknown, e.g. layer1.weight" in refusal(pth({**small_state(), **foreign}))
    wider = dict(make_network(replace(SMALL, width=0.25), 5).state_dict())
    assert "of another shape, e.g. conv1.bn.bias" in refusal(pth(wider))
