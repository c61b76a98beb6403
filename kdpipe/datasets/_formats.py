"""Readers of the file layouts that image sets come in, and the progress they show."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.api import Split
from kdpipe.core.errors import DataError

ROWS = 1000  # rows decoded at a time: a few megabytes


@dataclass(frozen=True)
class Cifar:
    """Where the files of a CIFAR set may lie, and how to read them.

    Attributes:
        name: name of the data set.
        label: column of the labels in its parquet files.
        pickles: folder of its Python version.
        reader: torchvision class that reads that folder.
    """

    name: str
    label: str
    pickles: str
    reader: str

    @property
    def layout(self) -> str:
        """What must lie in the data set's folder, for people."""
        return (
            "*train*.parquet and *test*.parquet as the Hugging Face hub serves them, "
            f"or the folder {self.pickles}/ of the Python version"
        )

    def read(self, folder: Path | None) -> dict[str, Split]:
        """The splits `train` and `test` from whichever layout lies in `folder`.

        The files may also lie where a clone of the hub's repository has them, or in a folder of the
        data set's name.

        Raises:
            DataError: the folder holds neither layout, or a file cannot be read.
        """
        if folder is None or not folder.is_dir():
            raise DataError(
                f"the folder of {self.name} is not there" if folder else f"{self.name} has no folder",
                where=str(folder) if folder else None,
                fix=f"name a folder that holds {self.layout}",
            )
        for place in (folder, folder / self.name, folder / "plain_text"):
            files = {split: sorted(place.glob(f"*{split}*.parquet")) for split in ("train", "test")}
            if all(files.values()):
                return {split: read_parquet(found, self.label) for split, found in files.items()}
            if (place / self.pickles).is_dir():
                return read_pickles(place, self.pickles, self.reader)
        raise DataError(
            f"the folder holds no images of {self.name}", where=str(folder), fix=f"put there {self.layout}"
        )


def read_parquet(files: Sequence[Path], label: str, side: int = 32) -> Split:
    """One split from parquet files in the Hugging Face layout: files as given, row order kept.

    Images are structs with the bytes of a file (PNG, WebP, ...) in a column `img` or `image`; only
    about a thousand rows are in memory undecoded.

    Args:
        files: the split's files.
        label: column of the labels.
        side: height and width of an image.

    Returns:
        Colour images N x 3 x side x side, labels N.

    Raises:
        DataError: a file is truncated, lacks a column or holds an image that cannot be decoded; the
            message names the file and the row in it, from 0.
    """
    total = sum(_open(file).metadata.num_rows for file in files)
    images = np.empty((total, 3, side, side), np.uint8)
    labels = np.empty(total, np.int64)
    done = 0
    title = f"reading {files[0].name}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    with progress(title, total) as advance:
        for file in files:
            first = done
            for encoded, numbers in _batches(file, label):
                for i, data in enumerate(encoded, start=done):
                    images[i] = _decode(data, side, f"{file}, row {i - first}")
                labels[done : done + len(numbers)] = numbers
                done += len(numbers)
                advance(len(numbers))
    return Split(images, labels, source="parquet")


def read_pickles(folder: Path, pickles: str, reader: str) -> dict[str, Split]:
    """Both splits from the Python version of a CIFAR set, read and checked by torchvision.

    Its files are pickles, which can run code when read; torchvision first compares their checksums
    with the published ones.

    Args:
        folder: holds the folder `pickles`.
        pickles: name of the folder with the data set's files.
        reader: name of the torchvision class.

    Raises:
        DataError: a file is missing or is not the published one.
    """
    import torchvision.datasets

    splits = {}
    for name in ("train", "test"):
        try:
            with warnings.catch_warnings():
                # early releases of NumPy 2.4 warn of the `align=0` that the published files hold
                warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
                data = getattr(torchvision.datasets, reader)(str(folder), train=name == "train")
        except (RuntimeError, OSError) as error:
            raise DataError(
                "files are missing, or are not those that were published (their checksums differ)",
                where=str(folder / pickles),
                fix="unpack the published archive again",
            ) from error
        images = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))
        splits[name] = Split(images, np.array(data.targets, np.int64), source="python")
    return splits


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show on stderr how far long work is: a bar on a terminal, a line per tenth elsewhere.

    Args:
        title: what is being done.
        total: units of work.

    Yields:
        A function to call with the number of units just done.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bars:
            task = bars.add_task(title, total=total)
            yield lambda units: bars.advance(task, units)
        return
    done = 0

    def advance(units: int) -> None:
        nonlocal done
        before, done = done, done + units
        if 10 * done // total > 10 * before // total:
            print(f"{title}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    yield advance


def _open(file: Path) -> Any:
    """The parquet file, its footer checked."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _broken(file, error) from error


def _batches(file: Path, label: str) -> Iterator[tuple[list[bytes | None], NDArray[np.int64]]]:
    """Encoded images and labels of a file, about a thousand rows at a time."""
    import pyarrow as pa

    opened = _open(file)
    columns = opened.schema_arrow.names
    picture = next((name for name in ("img", "image") if name in columns), None)
    if picture is None or label not in columns:
        raise DataError(
            f"a column is missing: it has {', '.join(columns)}",
            where=str(file),
            fix=f"use files with the columns img (or image) and {label}",
        )
    try:
        for batch in opened.iter_batches(ROWS, columns=[picture, label]):
            encoded = batch.column(picture).field("bytes").to_pylist()
            yield encoded, batch.column(label).to_numpy(zero_copy_only=False).astype(np.int64, casting="safe")
    except (pa.ArrowException, OSError) as error:
        raise _broken(file, error) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"columns {picture} and {label} are not images (bytes, path) and whole numbers",
            where=str(file),
            fix="use the files as the Hugging Face hub serves them",
        ) from error


def _decode(data: bytes | None, side: int, where: str) -> NDArray[np.uint8]:
    """An image file's pixels, 3 x side x side."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data or b"")) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError("an image cannot be decoded", where=where, fix="get the file again") from error
    if pixels.shape != (side, side, 3):
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise DataError(f"an image is {size} pixels, not {side} x {side}", where=where)
    return pixels.transpose(2, 0, 1)


def _broken(file: Path, error: Exception) -> DataError:
    return DataError(
        f"the file is damaged or truncated ({str(error).splitlines()[0]})",
        where=str(file),
        fix="get the file again",
    )
