"""Prepared data: written whole or not at all, checked when read; splits and subsets."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.api import DatasetSpec, Paper, Split
from kdpipe.core.errors import ConfigError, DataError, ResultsError
from kdpipe.core.files import sha256
from kdpipe.core.specs import DataSpec
from kdpipe.engine import prepare as module
from kdpipe.engine.batches import resident
from kdpipe.engine.prepare import (
    Prepared,
    channel_statistics,
    hold_out,
    load,
    pixel_hash,
    positions,
    prepare,
    select,
    subset,
)

ARRAYS = ["test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy"]


def made(count: int, seed: int) -> Split:
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)
    return Split(images, np.arange(count, dtype=np.int64) % 3, source="memory")


SPLITS = {"train": made(30, 0), "test": made(12, 1)}
SPEC = DatasetSpec(
    name="tiny",
    num_classes=3,
    shape=(3, 4, 5),
    sizes={"train": 30, "test": 12},
    read=lambda folder: SPLITS,
    licence="none",
    paper=Paper("t", "a", "v", 2020),
    embedded=True,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "data" / SPEC.folder
    prepare(SPEC, None, out)
    return out


@pytest.fixture
def prepared(folder: Path) -> Prepared:
    return load(folder)


def with_split(**changes: Any) -> DatasetSpec:
    """The data set with another training split."""
    return replace(SPEC, read=lambda folder: {**SPLITS, "train": replace(SPLITS["train"], **changes)})


def test_what_is_prepared_is_what_was_read(prepared: Prepared) -> None:
    for name, split in SPLITS.items():
        found = getattr(prepared, name)
        assert np.array_equal(found.images, split.images)
        assert np.array_equal(found.labels, split.labels)
    assert (prepared.name, prepared.num_classes, prepared.shape) == ("tiny", 3, (3, 4, 5))


def test_arrays_are_read_only_maps_of_files(prepared: Prepared) -> None:
    assert isinstance(prepared.train.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        prepared.train.images[0] = 0
    shared = resident(prepared.train.images, torch.device("cpu"))
    assert shared.data_ptr() == prepared.train.images.ctypes.data
    assert shared.shape == (30, 4, 5, 3)


def test_meta_holds_the_facts_and_no_path(folder: Path) -> None:
    text = (folder / "meta.json").read_text()
    meta = json.loads(text)
    assert str(folder.parent) not in text
    assert meta["sizes"] == {"train": 30, "test": 12}
    assert meta["files"] == {name: sha256(folder / name) for name in ARRAYS}
    assert meta["pixels"]["train"] == pixel_hash(SPLITS["train"].images)
    assert (meta["name"], meta["revision"], meta["num_classes"]) == ("tiny", 1, 3)
    assert (meta["source"], meta["licence"]) == ("memory", "none")
    assert meta["stats_source"] == "computed from the training split"
    assert load(folder).checksums == meta["files"]


def test_preparing_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    prepare(SPEC, None, tmp_path / "again")
    for name in (*ARRAYS, "meta.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_declared_statistic_wins_over_a_computed_one(tmp_path: Path) -> None:
    prepare(replace(SPEC, mean=(0.1, 0.2, 0.3), std=(1, 2, 3)), None, tmp_path / "x")
    found = load(tmp_path / "x")
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (1, 2, 3))


def test_statistics_are_those_of_numpy(prepared: Prepared) -> None:
    scaled = SPLITS["train"].images.astype(np.float64) / 255
    assert prepared.mean == pytest.approx(tuple(scaled.mean((0, 1, 2))), rel=1e-12)
    assert prepared.std == pytest.approx(tuple(scaled.std((0, 1, 2))), rel=1e-12)
    assert channel_statistics(np.full((1001, 2, 2, 1), 51, np.uint8)) == ((0.2,), (0.0,))


def test_pixel_hash_is_in_the_order_of_image_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    images = SPLITS["train"].images
    monkeypatch.setattr(module, "CHUNK", 7 * images[0].nbytes)
    assert pixel_hash(images) == hashlib.sha256(images.tobytes()).hexdigest()


def test_a_whole_folder_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file.name: file.stat().st_ino for file in folder.iterdir()}
    left = folder.with_name(f".{folder.name}.0123abcd.tmp")  # by a kill
    left.mkdir()
    prepare(replace(SPEC, read=lambda folder: pytest.fail("read again")), None, folder)
    assert not left.exists()
    assert {file.name: file.stat().st_ino for file in folder.iterdir()} == before
    assert "prepared already" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["missing", "truncated", "changed", "no meta", "other revision", "empty"])
def test_a_folder_that_is_not_whole_is_made_anew(folder: Path, harm: str) -> None:
    wanted = (folder / "train_images.npy").read_bytes()
    damage(folder, harm)
    prepare(SPEC, None, folder)
    assert (folder / "train_images.npy").read_bytes() == wanted
    load(folder, verify=True)
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]


def damage(folder: Path, harm: str) -> None:
    images, meta = folder / "train_images.npy", folder / "meta.json"
    data = bytearray(images.read_bytes())
    if harm == "missing":
        images.unlink()
    elif harm == "truncated":
        images.write_bytes(data[:-100])
    elif harm == "changed":
        data[-1] ^= 1
        images.write_bytes(data)
    elif harm == "no meta":
        meta.unlink()
    elif harm == "other revision":
        meta.write_text(json.dumps({**json.loads(meta.read_text()), "revision": 2}))
    elif harm == "empty":
        for file in folder.iterdir():
            file.unlink()


@pytest.mark.parametrize("file", ARRAYS)
@pytest.mark.parametrize("keep", [0, 20, -1])
def test_a_truncated_array_is_named_when_loaded(folder: Path, file: str, keep: int) -> None:
    (folder / file).write_bytes((folder / file).read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"(?s){file}.*delete the folder"):
        load(folder)


def test_a_changed_byte_is_found_by_the_checksum(folder: Path) -> None:
    damage(folder, "changed")
    load(folder, verify=False)
    with pytest.raises(DataError, match=r"(?s)train_images\.npy.*delete the folder"):
        load(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": 3}'])
def test_a_broken_meta_file_is_named(folder: Path, text: str) -> None:
    (folder / "meta.json").write_text(text)
    with pytest.raises(DataError, match=r"(?s)meta\.json.*delete the folder"):
        load(folder)


def test_arrays_of_other_shape_or_type_are_refused(folder: Path) -> None:
    np.save(folder / "test_labels.npy", np.zeros(12, np.int32))
    with pytest.raises(DataError, match=r"test_labels\.npy"):
        load(folder)
    np.save(folder / "test_labels.npy", np.zeros(11, np.int64))
    with pytest.raises(DataError, match=r"test_labels\.npy"):
        load(folder)


def test_a_pickled_array_is_never_loaded(folder: Path) -> None:
    np.save(folder / "test_labels.npy", np.array([{}] * 12, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"test_labels\.npy"):
        load(folder)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)not prepared.*nowhere"):
        load(tmp_path / "nowhere")


def test_a_source_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    def read(folder: Path | None) -> dict[str, Split]:
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        prepare(replace(SPEC, read=read), None, tmp_path / "data" / "x")
    assert not (tmp_path / "data").exists()


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, array: Any) -> None:
        if path.name == "test_labels.npy":
            raise OSError(errno.ENOSPC, "no space")
        np.save(path, array)

    monkeypatch.setattr(module, "_save", full)
    with pytest.raises(ResultsError, match="the disk is full"):
        prepare(SPEC, None, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_preparation_leaves_the_old_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(folder, "changed")
    before = (folder / "train_images.npy").read_bytes()

    def stop(path: Path, array: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(SPEC, None, folder)
    assert (folder / "train_images.npy").read_bytes() == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": made(29, 0).images}, r"(?s)30 images of 4 x 5 x 3.*29 images"),
        ({"images": np.zeros((30, 4, 5, 1), np.uint8)}, "30 images of 4 x 5 x 1"),
        ({"labels": np.zeros(29, np.int64)}, "29 labels"),
        ({"labels": np.arange(30)}, r"row 3 of the train split has the label 3, not one of 0 to 2"),
        ({"labels": np.arange(30) - 1}, "row 0 of the train split has the label -1"),
        ({"images": np.zeros((30, 4, 5, 3), np.float32)}, "float32 images"),
    ],
)
def test_a_split_that_is_not_as_declared_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(with_split(**changes), None, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_folder_name_follows_name_and_revision() -> None:
    names = {SPEC.folder, replace(SPEC, revision=2).folder, replace(SPEC, name="other").folder}
    assert len(names) == 3
    assert replace(SPEC, mean=(0, 0, 0), licence="new").folder == SPEC.folder
    assert SPEC.folder.startswith("tiny-")


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda x: np.array(x, np.int64))


@given(labels=LABELS, share=st.floats(0, 1), seed=st.integers(0, 5))
def test_a_subset_is_stratified_sorted_and_repeatable(labels: Any, share: float, seed: int) -> None:
    size = max(1, round(share * len(labels)))
    rows = subset(labels, size, seed)
    assert len(rows) == size
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, subset(labels, size, seed))
    for label in np.unique(labels):
        exact = size * (labels == label).sum() / len(labels)
        assert abs((labels[rows] == label).sum() - exact) < 1


def test_a_subset_gives_the_last_places_to_the_largest_remainders() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    rows = subset(labels, 9, seed=0)  # shares 4.5, 2.7, 1.8
    assert np.bincount(labels[rows]).tolist() == [4, 3, 2]


def test_the_seed_decides_the_subset_and_ties() -> None:
    labels = np.repeat(np.arange(10), 10)
    assert not np.array_equal(subset(labels, 20, 0), subset(labels, 20, 1))
    favoured = {tuple(labels[subset(labels, 3, seed)]) for seed in range(20)}
    assert len(favoured) > 5


def test_the_draw_stays_the_same_between_versions() -> None:
    labels = np.repeat(np.arange(4), 25)
    assert subset(labels, 6, 0).tolist() == [1, 11, 42, 50, 77, 93]
    assert hold_out(labels, 0.06, 0)[1].tolist() == [4, 19, 27, 50, 69, 99]


@given(labels=LABELS.filter(lambda x: len(x) > 3), fraction=st.floats(0.2, 0.8), seed=st.integers(0, 5))
def test_hold_out_cuts_in_two_and_stratifies(labels: Any, fraction: float, seed: int) -> None:
    train, held = hold_out(labels, fraction, seed)
    assert sorted([*train, *held]) == list(range(len(labels)))
    assert len(held) == round(fraction * len(labels))
    assert (np.diff(train) > 0).all()
    for label in np.unique(labels):
        exact = len(held) * (labels == label).sum() / len(labels)
        assert abs((labels[held] == label).sum() - exact) < 1


def test_hold_out_of_equal_classes_is_equal() -> None:
    labels = np.tile(np.arange(10), 50)
    train, held = hold_out(labels, 0.1, 0)
    assert np.bincount(labels[held]).tolist() == [5] * 10
    assert np.bincount(labels[train]).tolist() == [45] * 10


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_hold_out_leaves_no_side_empty(fraction: float) -> None:
    with pytest.raises(ConfigError, match="val_fraction"):
        hold_out(np.zeros(10, np.int64), fraction, 0)


def data(**changes: Any) -> DataSpec:
    return DataSpec(dataset="tiny", revision=1, **changes)


def test_everything_stays_mapped(prepared: Prepared) -> None:
    splits = select(prepared, data())
    assert splits.keys() == {"train", "test"}
    assert splits["train"].images is prepared.train.images
    assert splits["test"].labels is prepared.test.labels


def test_subsets_are_drawn_after_the_hold_out(prepared: Prepared) -> None:
    spec = data(split="train-val", val_fraction=0.2, train_samples=12, test_samples=6)
    rows, splits = positions(prepared, spec), select(prepared, spec)
    assert {name: len(split.labels) for name, split in splits.items()} == {"train": 12, "val": 6, "test": 6}
    assert not set(rows["train"]) & set(rows["val"])
    assert np.array_equal(rows["val"], hold_out(SPLITS["train"].labels, 0.2, 0)[1])
    for name, source in (("train", "train"), ("val", "train"), ("test", "test")):
        assert np.array_equal(splits[name].images, SPLITS[source].images[rows[name]])
        assert np.array_equal(splits[name].labels, SPLITS[source].labels[rows[name]])
        assert np.bincount(splits[name].labels).tolist() == [len(rows[name]) // 3] * 3


def test_the_split_seed_moves_the_splits(prepared: Prepared) -> None:
    one = positions(prepared, data(train_samples=9))["train"]
    other = positions(prepared, data(train_samples=9, split_seed=1))["train"]
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_samples": 31}, r"train_samples is 31, but there are 30 images"),
        ({"test_samples": 13}, r"test_samples is 13, but there are 12 images"),
        ({"split": "train-val", "val_fraction": 0.2, "train_samples": 25}, "there are 24 images"),
    ],
)
def test_a_subset_larger_than_the_split_is_refused(prepared: Prepared, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(prepared, data(**changes))


def shares(rows: int = 12, classes: int = 3) -> np.ndarray[Any, Any]:
    drawn = np.random.default_rng(2).random((rows, classes))
    return drawn / drawn.sum(1, keepdims=True)


def test_shares_of_the_test_images_are_prepared_with_them(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / SPEC.folder
    source.mkdir()
    np.save(source / "test_reference.npy", shares())
    prepare(SPEC, source, out)
    found = load(out, verify=True)
    assert found.reference is not None
    np.testing.assert_allclose(found.reference, shares(), rtol=1e-6)
    (out / "test_reference.npy").unlink()
    with pytest.raises(DataError, match="missing"):
        load(out)


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (shares(11), "of shape"),
        (shares()[:, :2], "of shape"),
        (shares() * 2, "add up"),
        (shares() - 1, "add up"),
        (np.ones((12, 3), int), "int64"),
        (None, "cannot be read"),
    ],
)
def test_wrong_shares_are_refused(tmp_path: Path, array: Any, what: str) -> None:
    file = tmp_path / "test_reference.npy"
    file.write_bytes(b"no array") if array is None else np.save(file, array)
    with pytest.raises(DataError, match=what):
        prepare(SPEC, tmp_path, tmp_path / SPEC.folder)
