"""Configs: they survive JSON, take `--set`, and name the dotted field that is wrong."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cropscore_ray.config.bulk import LocalizeConfig
from cropscore_ray.config.overrides import from_dict, to_dict, with_settings
from cropscore_ray.config.sections import (
    LocalizerConfig,
    NetworkConfig,
    PreprocessConfig,
    ScorerConfig,
    TrainConfig,
)
from cropscore_ray.errors import ConfigError
from cropscore_ray.jobs import recipes

PLAIN = TrainConfig(recipe="test")


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_survives_json(name: str) -> None:
    config = recipes.get(name)
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert config.recipe == name


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'mine'") as caught:
        recipes.get("mine")
    assert caught.value.hint is not None
    assert "poster" in caught.value.hint


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**31),
    rate=st.floats(1e-6, 1.0),
    hidden=st.lists(st.integers(1, 512), min_size=1, max_size=4),
    init=st.none() | st.text(min_size=1),
)
def test_any_config_survives_json(
    seed: int, rate: float, hidden: list[int], init: str | None
) -> None:
    config = replace(
        PLAIN,
        seed=seed,
        scorer=ScorerConfig(learning_rate=rate),
        localizer=LocalizerConfig(hidden=tuple(hidden)),
        classifier=replace(PLAIN.classifier, init=init),
    )
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("setting", "section", "field", "value"),
    [
        ("seed=7", None, "seed", 7),
        ("use_gpu=True", None, "use_gpu", True),
        ("use_gpu=null", None, "use_gpu", None),
        ("scorer.epochs=3", "scorer", "epochs", 3),
        ("scorer.learning_rate=1", "scorer", "learning_rate", 1.0),
        ("scorer.learning_rate=2e-3", "scorer", "learning_rate", 0.002),
        ("classifier.init=torchvision:NAME", "classifier", "init", "torchvision:NAME"),
        ('classifier.init="a=b.pth"', "classifier", "init", "a=b.pth"),
        ("classifier.init=None", "classifier", "init", None),
        ("localizer.hidden=[8, 4]", "localizer", "hidden", (8, 4)),
        ("preprocess.mean=[0, 0.5, 1]", "preprocess", "mean", (0.0, 0.5, 1.0)),
    ],
)
def test_a_setting_changes_one_field(
    setting: str, section: str | None, field: str, value: object
) -> None:
    changed = with_settings(PLAIN, [setting])
    found = getattr(getattr(changed, section) if section else changed, field)
    assert found == value
    assert type(found) is type(value)
    assert with_settings(PLAIN, []) == PLAIN
    assert changed != PLAIN or value is None


def test_the_last_of_two_settings_wins() -> None:
    assert with_settings(PLAIN, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("seed", "'seed' has no '='"),
        ("seeds=1", "'seeds'"),
        ("scorer.epoch=1", "'scorer.epoch'"),
        ("score.epochs=1", "'score.epochs'"),
        ("seed.epochs=1", "'seed.epochs'"),
        ("=1", "no setting ''"),
        ("seed=1.5", "seed is 1.5, .* int"),
        ("seed=true", "seed is True, .* int"),
        ("seed=many", "seed is 'many', .* int"),
        ("seed=-1", "seed is -1, .* 0 or more"),
        ("max_localizer_images=0", "max_localizer_images is 0, .* 1 or more"),
        ("use_gpu=1", "use_gpu is 1, .* bool or null"),
        ("scorer=3", "scorer is 3, .* ScorerConfig"),
        ("scorer.epochs=[1]", "scorer.epochs is "),
        ("scorer.learning_rate=fast", "scorer.learning_rate is 'fast'"),
        ("scorer.learning_rate=true", "scorer.learning_rate is True, .* float"),
        ("scorer.learning_rate=NaN", "scorer.learning_rate is nan"),
        ("scorer.weight_decay=-1", "scorer.weight_decay is -1.0"),
        ("classifier.init=3", "classifier.init is 3"),
        ("localizer.hidden=64", r"localizer.hidden is 64, .* a list in brackets, like \[1, 2\]"),
        ("localizer.hidden=[]", "localizer.hidden is "),
        ('localizer.hidden=["wide"]', r"localizer.hidden\[0\] is 'wide'"),
        ("localizer.hidden=[0]", "localizer.hidden is "),
        ("localizer.batch_size=0", "localizer.batch_size is 0"),
        ("localizer.dropout=1", "localizer.dropout is 1.0"),
        ("localizer.loss=l3", "localizer.loss is 'l3'"),
        ("preprocess.mean=[0.5]", "preprocess.mean is "),
        ("preprocess.std=[1, 0, 1]", "preprocess.std is "),
        ("preprocess.input_px=300", "preprocess.frame_px is 256"),
        ("network.architecture=vgg", "network.architecture is 'vgg'"),
        ("localizer_fraction=1", "localizer_fraction is 1.0"),
        ("voter.held_back_fraction=1", "voter.held_back_fraction is 1.0"),
        ("classifier.epochs=0", "classifier.num_members is 3, .* classifier.epochs 0"),
        ("classifier.init_members=4", r"classifier.init_members is 4, .*num_members \(3\)"),
        ("classifier.init_members=0", "classifier.init_members is 0"),
    ],
)
def test_a_wrong_setting_is_named_with_its_section(setting: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        with_settings(PLAIN, [setting])


def test_a_wrong_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        with_settings(PLAIN, ["scorer.epoch=1"])
    assert caught.value.hint is not None
    assert "epochs" in caught.value.hint
    assert caught.value.exit_code == 2


def test_bounds_themselves_are_allowed() -> None:
    assert PreprocessConfig(input_px=32, frame_px=32).frame_px == 32
    assert NetworkConfig(width=4).width == 4
    assert ScorerConfig(epochs=0, grid_fraction=1, jitter_fraction=0).grid_fraction == 1
    assert LocalizeConfig(top_k=1, part_images=1).top_k == 1
    with pytest.raises(ConfigError, match="top_k is 0"):
        LocalizeConfig(top_k=0)
    with pytest.raises(ConfigError, match=r"preprocess\.input_px is 31"):
        PreprocessConfig(input_px=31)
