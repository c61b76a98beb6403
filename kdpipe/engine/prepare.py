"""Data prepared once into checked arrays that every run maps into memory; splits and subsets.

Images that stay in their files are prepared as an index of them, and a link to where they lie.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.api import DatasetSpec, ImageFiles, Split
from kdpipe.core.errors import ConfigError, DataError, KdpipeError
from kdpipe.core.files import beside, read_json, sha256, sweep, write_error, write_json
from kdpipe.core.specs import DataSpec

REFERENCE = "test_reference.npy"  # in the source folder: what people say of the test images, say
SPLITS = ("train", "test")
CHUNK = 4_000_000  # bytes of images handled at a time, to bound memory
SAMPLE = 10_000  # images on disk that mean and std are computed from, where none are declared
LINK = "images"  # in the folder of a set whose images stay in their files: where they lie
HOLD_OUT, SUBSET = 0, 1  # streams of the split seed

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Prepared:
    """A prepared data set; its arrays (or the index of its image files) are read-only maps of files.

    Attributes:
        name: the data set.
        num_classes: number of labels.
        shape: (C, H, W) of what a network sees of an image.
        mean: of each channel, for images in [0, 1].
        std: the same.
        train: the training split.
        test: the test split.
        checksums: SHA-256 of each array's file, by name.
        preprocessing: `standardise` or `unit-norm` (see `DatasetSpec`).
        targets: the number that stands for each class in a regression onto labels.
        classes: names of the classes, where they are known.
        reference: of the test images, shares of each class (N x C) that people or a generator gave them,
            where the source folder holds such a file (`REFERENCE`).
    """

    name: str
    num_classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    test: Split
    checksums: dict[str, str]
    preprocessing: str = "standardise"
    targets: tuple[float, ...] | None = None
    classes: tuple[str, ...] = ()
    reference: NDArray[np.float32] | None = None


def prepare(spec: DatasetSpec, source: Path | None, out: Path) -> None:
    """Write a data set's arrays and `meta.json` to the folder `out`, whole or not at all.

    A folder that is already whole is checked and kept; one that is not is made anew.

    Args:
        spec: the data set.
        source: folder that holds it; not used for embedded data.
        out: folder to make.

    Raises:
        DataError: the source is missing, unreadable or not this data set.
        ResultsError: `out` cannot be written.
    """
    if _whole(spec, out):
        sweep(out)
        print(f"{spec.name} is prepared already; its checksums are right", file=sys.stderr)
        return
    splits = spec.read(source)
    classes = spec.num_classes or _count_classes(splits)
    for name in SPLITS:
        _check_split(spec, classes, name, splits[name])
    if len(found := np.unique(splits["train"].labels)) < (spec.num_classes or 0):
        raise DataError(
            f"{spec.name} has {spec.num_classes} classes, but the train split has images of {len(found)}",
            fix=f"use the complete data set: {spec.layout}",
        )
    mean, std, stats_source = _statistics(spec, splits["train"].images)
    with _folder(out) as folder:
        for name in SPLITS:
            _save_images(folder, name, splits[name].images)
            _save(folder / f"{name}_labels.npy", splits[name].labels)
        if source is not None and (source / REFERENCE).is_file():
            shares = _read_reference(source / REFERENCE, (len(splits["test"].labels), classes))
            _save(folder / REFERENCE, shares)
        images = {name: splits[name].images for name in SPLITS}
        meta = {
            "name": spec.name,
            "revision": spec.revision,
            "num_classes": classes,
            "classes": list(splits["train"].classes),
            "shape": list(spec.shape),
            "sizes": {name: len(splits[name].labels) for name in SPLITS},
            "mean": list(mean),
            "std": list(std),
            "stats_source": stats_source,
            "preprocessing": spec.preprocessing,
            "targets": spec.targets,
            "files": {file.name: sha256(file) for file in sorted(folder.glob("*.npy"))},
            "pixels": {n: pixel_hash(i) for n, i in images.items() if not isinstance(i, ImageFiles)},
            "source": splits["train"].source,
            "licence": spec.licence,
        }
        write_json(folder / "meta.json", meta)
    sizes = ", ".join(f"{len(splits[name].labels):,} {name}" for name in SPLITS)
    print(f"prepared {spec.name}: {sizes} images", file=sys.stderr)


def fetch(spec: DatasetSpec, source: Path | None) -> None:
    """Download a data set's published files to `source` unless it holds them; needs the internet.

    Nothing happens where a data set has no download: `prepare` then says what to put where.

    Raises:
        DataError: the download failed.
    """
    if spec.download is not None and source is not None:
        spec.download(source)


def load(folder: Path, verify: bool = True) -> Prepared:
    """Map a prepared data set into memory.

    Args:
        folder: what `prepare` made.
        verify: compare the arrays' checksums, which reads every byte (about a second for 1 GB).

    Raises:
        DataError: a file is missing, truncated or not what `meta.json` says.
    """
    if not folder.is_dir():
        raise DataError(
            "the data set is not prepared", where=str(folder), fix="prepare it first: kdpipe prepare --help"
        )
    try:
        meta = read_json(folder / "meta.json")
        files, sizes = dict(meta["files"]), dict(meta["sizes"])
        shape = (int(meta["shape"][0]), int(meta["shape"][1]), int(meta["shape"][2]))
        mean, std = (tuple(map(float, meta[key])) for key in ("mean", "std"))
        targets = meta["targets"]
        splits = {
            split: Split(
                images=_load_images(folder, split, sizes[split], shape),
                labels=_map(folder / f"{split}_labels.npy", "i8", (sizes[split],)),
            )
            for split in SPLITS
        }
        prepared = Prepared(
            name=str(meta["name"]),
            num_classes=int(meta["num_classes"]),
            shape=shape,
            mean=mean,
            std=std,
            train=splits["train"],
            test=splits["test"],
            checksums=files,
            preprocessing=str(meta["preprocessing"]),
            targets=None if targets is None else tuple(map(float, targets)),
            classes=tuple(map(str, meta["classes"])),
            reference=_map(folder / REFERENCE, "f4", (sizes["test"], int(meta["num_classes"])))
            if REFERENCE in files
            else None,
        )
    except (KdpipeError, KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(folder / "meta.json") from error
    for file, checksum in files.items() if verify else ():
        if sha256(folder / file) != checksum:
            raise _damaged(folder / file)
    return prepared


def select(prepared: Prepared, data: DataSpec) -> dict[str, Split]:
    """The splits that a run sees: `train`, `test`, and `val` where a validation set is held out.

    Raises:
        ConfigError: a subset is larger than what it is drawn from.
    """
    rows = positions(prepared, data)
    whole = {"train": prepared.train, "val": prepared.train, "test": prepared.test}
    return {name: _take(whole[name], index) for name, index in rows.items()}


def positions(prepared: Prepared, data: DataSpec) -> dict[str, Indices]:
    """Which rows of the prepared arrays each split of a run holds, in rising order.

    The validation set is drawn first, from all training images; the training subset from the rest.

    Raises:
        ConfigError: a subset is larger than what it is drawn from.
    """
    labels = np.asarray(prepared.train.labels)
    train = np.arange(len(labels))
    rows = {}
    if data.split == "train-val":
        train, rows["val"] = hold_out(labels, data.val_fraction, data.split_seed)
    rows["train"] = train[_reduced(labels[train], data.train_samples, data.split_seed, "train_samples")]
    test = np.asarray(prepared.test.labels)
    rows["test"] = _reduced(test, data.test_samples, data.split_seed, "test_samples")
    return rows


def subset(labels: NDArray[np.int64], size: int, seed: int) -> Indices:
    """Positions of a stratified subset, in rising order; a function of its arguments alone.

    Every class gets its share of `size`, rounded down; the images still missing go to the classes with
    the largest remainders, ties in a random order.

    Args:
        labels: N.
        size: images to take, 1 to N.
        seed: of the draw.

    Raises:
        ConfigError: `size` is larger than N.
    """
    return _stratified(labels, size, np.random.Generator(np.random.PCG64([seed, SUBSET])))


def hold_out(labels: NDArray[np.int64], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Positions that stay for training and those of a stratified validation set, both in rising order.

    Args:
        labels: N.
        fraction: share held out; `fraction` N is rounded to a whole number of images.
        seed: of the draw.

    Raises:
        ConfigError: one of the two would be empty.
    """
    size = round(fraction * len(labels))
    if not 0 < size < len(labels):
        raise ConfigError(
            f"holding out a share of {fraction} of {len(labels)} images leaves one side empty",
            fix="change val_fraction",
        )
    held = _stratified(labels, size, np.random.Generator(np.random.PCG64([seed, HOLD_OUT])))
    return np.setdiff1d(np.arange(len(labels)), held, assume_unique=True), held


def pixel_hash(images: NDArray[np.uint8]) -> str:
    """SHA-256 of the pixels as N x H x W x C bytes, the order in which image files hold them."""
    digest = hashlib.sha256()
    for chunk in _chunks(images):
        digest.update(chunk.tobytes())
    return digest.hexdigest()


def _sampled(images: ImageFiles) -> Iterator[NDArray[np.uint8]]:
    from kdpipe.engine.ondisk import (
        sample_of,  # imports torch, which what reads prepared arrays can do without
    )

    return sample_of(images, SAMPLE)


def channel_statistics(
    images: NDArray[np.uint8] | ImageFiles,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images in [0, 1], from exact whole-number sums.

    Args:
        images: N x H x W x C; of image files, the evaluation views of at most `SAMPLE`, evenly spaced.
    """
    levels = np.arange(256)
    counts: dict[int, Any] = {}
    for chunk in _sampled(images) if isinstance(images, ImageFiles) else _chunks(images):
        for channel in range(chunk.shape[-1]):
            found = np.bincount(chunk[..., channel].ravel(), minlength=256)
            counts[channel] = counts.get(channel, 0) + found
    means, stds = [], []
    for count in counts.values():
        n, total, squares = (int((count * levels**power).sum()) for power in (0, 1, 2))
        means.append(total / n / 255)
        stds.append((n * squares - total**2) ** 0.5 / n / 255)
    return tuple(means), tuple(stds)


def _stratified(labels: NDArray[np.int64], size: int, draw: np.random.Generator) -> Indices:
    total = len(labels)
    if not 0 < size <= total:
        raise ConfigError(f"cannot take {size:,} of {total:,} images", fix=f"choose 1 to {total}")
    classes, counts = np.unique(labels, return_counts=True)
    quota, remainder = np.divmod(size * counts, total)
    ties = draw.permutation(len(classes))
    first = ties[np.argsort(-remainder[ties], kind="stable")]
    quota[first[: size - quota.sum()]] += 1
    taken = [draw.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(taken))


def _reduced(labels: NDArray[np.int64], size: int | None, seed: int, key: str) -> Indices:
    if size is None:
        return np.arange(len(labels))
    if size > len(labels):
        raise ConfigError(
            f"{key} is {size:,}, but there are {len(labels):,} images",
            fix=f"set {key} to at most {len(labels)}",
        )
    return subset(labels, size, seed)


def _take(split: Split, rows: Indices) -> Split:
    """These rows of a split; all of them stay mapped."""
    return split if len(rows) == len(split.labels) else Split(split.images[rows], split.labels[rows])


def _whole(spec: DatasetSpec, folder: Path) -> bool:
    """Whether `folder` holds this data set, every byte of it."""
    if not (folder / "meta.json").exists():
        return False
    try:
        found = load(folder)
    except DataError as error:
        print(f"preparing {spec.name} again: {error.what}", file=sys.stderr)
        return False
    meta = read_json(folder / "meta.json")
    return (found.name, meta["revision"]) == (spec.name, spec.revision)


def _count_classes(splits: dict[str, Split]) -> int:
    """The number of classes where none is declared: those that have a name, else the labels that occur."""
    return len(splits["train"].classes) or 1 + max(
        int(split.labels.max(initial=0)) for split in splits.values()
    )


def _check_split(spec: DatasetSpec, classes: int, name: str, split: Split) -> None:
    """Raise unless a split is what its data set declares."""
    images, labels = split.images, split.labels
    channels, height, width = spec.shape
    form = (height, width, channels)
    shape = (len(images), *form) if isinstance(images, ImageFiles) else images.shape
    wanted = (spec.sizes.get(name, len(labels)), *form)
    if shape != wanted or labels.shape != wanted[:1]:
        raise DataError(
            f"{spec.name} has {_count(wanted)} in its {name} split, but {_count(shape)} "
            f"and {len(labels):,} labels were read",
            fix=f"use the complete data set: {spec.layout}",
        )
    if not len(labels):
        raise DataError(f"the {name} split of {spec.name} is empty", fix=f"put there {spec.layout}")
    kind = np.dtype(np.uint8) if isinstance(images, ImageFiles) else images.dtype
    if kind != np.uint8 or labels.dtype != np.int64:
        raise DataError(f"{spec.name}: read() gave {kind} images and {labels.dtype} labels")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"{spec.name}: row {wrong[0]} of the {name} split has the label {labels[wrong[0]]}, "
            f"not one of 0 to {classes - 1}",
            fix="get the files again",
        )


def _count(shape: tuple[int, ...]) -> str:
    return f"{shape[0]:,} images of {' x '.join(map(str, shape[1:]))}"


def _statistics(
    spec: DatasetSpec, images: NDArray[np.uint8] | ImageFiles
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """The declared mean and std, or those of the training images; and where they come from."""
    if spec.mean is not None and spec.std is not None:
        return spec.mean, spec.std, spec.stats_source
    part = isinstance(images, ImageFiles) and len(images) > SAMPLE
    source = f"computed from {SAMPLE:,} images of the training split" if part else spec.stats_source
    return *channel_statistics(images), source


def _chunks(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    step = max(1, CHUNK // images[:1].nbytes)
    for start in range(0, len(images), step):
        yield images[start : start + step]


def _save_images(folder: Path, split: str, images: NDArray[np.uint8] | ImageFiles) -> None:
    """Write a split's images: the array, or the names of their files and a link to where they lie."""
    if not isinstance(images, ImageFiles):
        _save(folder / f"{split}_images.npy", images)
        return
    _save(folder / f"{split}_files.npy", images.names)
    link = folder / LINK
    if not link.is_symlink():
        link.symlink_to(images.root.resolve(), target_is_directory=True)


def _load_images(
    folder: Path, split: str, size: int, shape: tuple[int, int, int]
) -> NDArray[np.uint8] | ImageFiles:
    """What `_save_images` wrote."""
    channels, height, width = shape
    if not (folder / f"{split}_files.npy").exists():
        return _map(folder / f"{split}_images.npy", "u1", (size, height, width, channels))
    root = folder / LINK
    if not root.is_dir():
        raise DataError(
            "the images are no longer where they were when the data set was prepared",
            where=f"{root} -> {os.readlink(root) if root.is_symlink() else 'nothing'}",
            fix=f"let this link lead to them, or delete the folder {folder}",
        )
    return ImageFiles(root, _map(folder / f"{split}_files.npy", "S", (size,)), height)


def _read_reference(path: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Shares of each class for each test image, checked."""
    fix = f"put there an array of shape {shape[0]} x {shape[1]}, in the order of the test images, or nothing"
    try:
        shares = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError("the shares of the test images cannot be read", where=str(path), fix=fix) from error
    if shares.shape != shape or shares.dtype.kind != "f":
        raise DataError(f"the shares are {shares.dtype} of shape {shares.shape}", where=str(path), fix=fix)
    if not (np.isfinite(shares).all() and (shares >= 0).all() and np.allclose(shares.sum(1), 1, atol=1e-3)):
        raise DataError(
            "each row must be shares >= 0 that add up to 1", where=str(path), fix="normalise the rows"
        )
    return np.asarray(shares, np.float32)


def _map(path: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array mapped from its file, its type (a byte string of any length for `S`) and shape checked."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path) from error
    if array.shape != shape or array.dtype.kind + ("" if dtype == "S" else str(array.itemsize)) != dtype:
        raise _damaged(path)
    return array


def _damaged(path: Path) -> DataError:
    return DataError(
        "prepared data are missing, truncated or changed",
        where=str(path),
        fix=f"delete the folder {path.parent}; the data will be prepared again",
    )


def _save(path: Path, array: NDArray[Any]) -> None:
    with open(path, "wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well."""
    try:
        with beside(out, folder=True) as temporary:
            content = temporary / "new"
            content.mkdir()
            yield content
            _sync(content)
            if out.exists():
                os.replace(out, temporary / "old")
            os.replace(content, out)
            _sync(out.parent)
    except OSError as error:
        raise write_error(out, error) from error


def _sync(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
