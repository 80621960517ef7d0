"""Who learns from which images: shares that have none in common, whatever the set."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cropscore_ray.config import modes
from cropscore_ray.config.sections import LocalizerConfig, ScorerConfig, TrainConfig, VoterConfig
from cropscore_ray.datasets.manifest import Manifest
from cropscore_ray.schema import MANIFEST, ImageClass
from cropscore_ray.training.data.shares import (
    boxed_rows,
    classifier_rows,
    labelled_images,
    split_boxed,
)

CONFIG = TrainConfig(recipe="test")


def a_manifest(classes: list[int | None], boxed: list[bool]) -> Manifest:
    """Images of these classes, some of which have a box."""
    rows = [
        {
            "image_id": 10 * i,
            "image_uri": f"{i}.jpg",
            "width_px": 40,
            "height_px": 30,
            "class_index": class_index,
            "gt_boxes": [[1.0, 2.0, 30.0, 20.0]] if has_box else [None, []][i % 2],
            "split": "train",
        }
        for i, (class_index, has_box) in enumerate(zip(classes, boxed, strict=True))
    ]
    named = [ImageClass(id=str(i), name=str(i)) for i in range(9)]
    return Manifest(table=pa.Table.from_pylist(rows, MANIFEST), classes=named)


def ids(rows: pa.Table) -> list[int]:
    found: list[int] = rows["image_id"].to_pylist()
    return found


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    images = draw(st.lists(st.tuples(st.none() | st.integers(0, 8), st.booleans()), max_size=80))
    images += [(0, True), (1, True)]
    return a_manifest([one for one, _ in images], [has_box for _, has_box in images])


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    is_trained = draw(st.booleans())
    share = st.floats(0.01, 0.99)
    return TrainConfig(
        recipe="test",
        seed=draw(st.integers(0, 50)),
        mode=draw(st.sampled_from(["exact", "pyramid", "votes"])),
        scorer=ScorerConfig(epochs=1 if is_trained else 0),
        localizer_fraction=draw(share) if is_trained else draw(share | st.just(1.0)),
        max_localizer_images=draw(st.none() | st.integers(1, 60)),
        localizer=LocalizerConfig(held_back_fraction=draw(share)),
        voter=VoterConfig(held_back_fraction=draw(share)),
    )


@settings(max_examples=200)
@given(manifest=manifests(), config=configs())
def test_no_image_is_in_two_shares_nor_held_back_and_seen_by_a_classifier(
    manifest: Manifest, config: TrainConfig
) -> None:
    found = split_boxed(manifest, config)
    each = [ids(rows) for rows in (found.scorer, found.localizer, found.choosing, found.judging)]
    dealt = [one for some in each for one in some]
    assert len(set(dealt)) == len(dealt)
    assert set(dealt) <= set(ids(boxed_rows(manifest)))
    assert all(some == sorted(some) for some in each)
    assert ids(found.held_back) == sorted(each[2] + each[3])
    assert ids(found.scored) == sorted(each[1] + each[2] + each[3])
    if config.max_localizer_images is None:
        assert set(dealt) == set(ids(boxed_rows(manifest)))
    seen = classifier_rows(manifest, config)
    assert not set(ids(seen)) & set(each[2] + each[3])
    labelled = manifest.table.filter(manifest.table["class_index"].is_valid())
    assert len(seen) == len(labelled) - len(each[2]) - len(each[3])


@settings(max_examples=200)
@given(manifest=manifests(), config=configs())
def test_some_images_choose_and_others_judge(manifest: Manifest, config: TrainConfig) -> None:
    found = split_boxed(manifest, config)
    if config.mode == "votes":
        assert len(found.choosing) == 0
        assert len(found.judging) >= min(1, len(found.scored))
    elif len(found.scored) >= 2:
        assert len(found.judging) - len(found.choosing) in (0, 1)
        assert len(found.choosing) >= 1


def test_the_scorers_share_does_not_depend_on_what_is_held_back() -> None:
    manifest = a_manifest([i % 5 for i in range(100)], [True] * 100)
    plain = split_boxed(manifest, CONFIG)
    other = split_boxed(manifest, replace(CONFIG, mode="votes"))
    more = replace(CONFIG, localizer=LocalizerConfig(held_back_fraction=0.6))
    for found in (other, split_boxed(manifest, more)):
        assert ids(found.scorer) == ids(plain.scorer)
        assert ids(found.scored) == ids(plain.scored)
    # As every version drew them, so that models and figures stay comparable.
    assert ids(plain.scorer)[:8] == [40, 50, 60, 100, 130, 150, 160, 180]


def test_both_halves_of_what_is_held_back_have_the_same_classes() -> None:
    manifest = a_manifest([i % 5 for i in range(200)], [True] * 200)
    config = replace(CONFIG, localizer=LocalizerConfig(held_back_fraction=0.4))
    found = split_boxed(manifest, config)
    for rows, expected in ((found.choosing, 4), (found.judging, 4), (found.localizer, 12)):
        counts = np.bincount(rows["class_index"].to_numpy(), minlength=5)
        assert abs(counts - expected).max() <= 1


@pytest.mark.parametrize("mode", ["exact", "votes"])
def test_classifiers_keep_an_image_of_every_class(mode: str) -> None:
    classes = [0, 1, 2, 3, 3, *[4] * 40]  # three classes of one image each
    manifest = a_manifest(classes, [True] * len(classes))
    for seed in range(20):
        config = TrainConfig(
            recipe="test",
            mode=mode,
            seed=seed,
            scorer=ScorerConfig(epochs=0),
            localizer_fraction=1.0,
            localizer=LocalizerConfig(held_back_fraction=0.7),
            voter=VoterConfig(held_back_fraction=0.7),
        )
        seen = classifier_rows(manifest, config)
        assert set(seen["class_index"].to_pylist()) == {0, 1, 2, 3, 4}
        assert len(seen) < 25


def test_without_boxes_classifiers_learn_from_all_labelled_images() -> None:
    manifest = a_manifest([0, None, 1, 0], [False, True, True, False])
    assert ids(classifier_rows(manifest, CONFIG)) == [0, 20, 30]
    assert len(classifier_rows(a_manifest([], []), CONFIG)) == 0


def test_more_images_than_tell_something_are_not_held_back_for_votes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(modes.LOCALIZER_KINDS, "votes", replace(modes.VOTER, most_held_back=3))
    manifest = a_manifest([i % 5 for i in range(100)], [True] * 100)
    assert len(split_boxed(manifest, replace(CONFIG, mode="votes")).judging) == 3
    assert len(split_boxed(manifest, CONFIG).judging) == 4


def test_columns_say_what_the_rows_do() -> None:
    manifest = a_manifest([0, 1, 2, 3], [True, False, True, False])
    rows = manifest.table.set_column(
        5,
        MANIFEST.field("gt_boxes"),
        pa.array(
            [[[1, 2, 30, 20], [0, 0, 5, 5]], [], [[3, 4, 5, 6]], None],
            MANIFEST.field("gt_boxes").type,
        ),
    )
    # Chunks, a slice: what Arrow has in memory is more than the rows.
    for some in (rows, pa.concat_tables([rows.slice(0, 1), rows.slice(1)]), rows.slice(1, 3)):
        found = labelled_images(some)
        assert list(found.uris) == some["image_uri"].to_pylist()
        assert [one.tolist() for one in found.boxes] == [
            one or [] for one in some["gt_boxes"].to_pylist()
        ]
        assert len(found) == len(found.boxes) == len(some)
        assert all(one.shape == (len(one), 4) for one in found.boxes)
    taken = labelled_images(rows).take(np.array([2, 0]))
    assert [one.tolist() for one in taken.boxes] == [[[3, 4, 5, 6]], [[1, 2, 30, 20], [0, 0, 5, 5]]]
    with pytest.raises(IndexError):
        labelled_images(rows).boxes[4]
