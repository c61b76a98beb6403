"""Readers of the file layouts that image sets come in, and the progress they show."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.api import DatasetSpec, Paper, Split
from kdpipe.core.errors import DataError
from kdpipe.core.files import beside

ROWS = 1000  # rows decoded at a time: a few megabytes
CIFAR_LICENCE = "none stated; the author asks for a citation"
CIFAR_PAPER = Paper(
    title="Learning multiple layers of features from tiny images",
    authors="Krizhevsky",
    venue="Technical report, University of Toronto",
    year=2009,
    url="https://www.cs.toronto.edu/~kriz/cifar.html",
)


@dataclass(frozen=True)
class Pixels:
    """The form that decoded images take.

    Attributes:
        side: height and width.
        channels: 3 (colour) or 1 (grey); images of the other kind are converted.
        resize: bring images of another size to `side`: the largest square in the middle, resampled
            (bilinear, antialiased). Without it such an image is an error.
    """

    side: int = 32
    channels: int = 3
    resize: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.side, self.side, self.channels

    @property
    def mode(self) -> str:
        """Pillow's name for these channels."""
        return "RGB" if self.channels == 3 else "L"

    def decode(self, data: bytes | None, where: str) -> NDArray[np.uint8]:
        """An image file's pixels, H x W x C.

        Args:
            data: the file's bytes.
            where: the file's name, for messages.

        Raises:
            DataError: it cannot be decoded or has another size.
        """
        from PIL import Image, ImageOps

        wanted = (self.side, self.side)
        try:
            with Image.open(io.BytesIO(data or b"")) as file:
                # of another size, it is refused before a bomb of an image fills the memory
                image = file.convert(self.mode) if self.resize or file.size == wanted else file
            if self.resize and image.size != wanted:
                image = ImageOps.fit(image, wanted, Image.Resampling.BILINEAR)
        except Exception as error:  # Pillow's decoders raise many kinds
            raise DataError("an image cannot be decoded", where=where, fix="get the file again") from error
        if image.size != wanted:
            size = f"{image.size[0]} x {image.size[1]}"
            raise DataError(
                f"an image is {size} pixels, not {self.side} x {self.side}",
                where=where,
                fix="use images of that size; a data set described in YAML may say 'resize: true'",
            )
        return np.asarray(image).reshape(self.shape)


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

    def spec(
        self, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...], stats_source: str
    ) -> DatasetSpec:
        """The whole data set: 50,000 + 10,000 colour images of 32 pixels."""
        return DatasetSpec(
            name=self.name,
            num_classes=num_classes,
            shape=(3, 32, 32),
            sizes={"train": 50_000, "test": 10_000},
            read=self.read,
            mean=mean,
            std=std,
            stats_source=stats_source,
            licence=CIFAR_LICENCE,
            paper=CIFAR_PAPER,
            layout=self.layout,
            download=self.download,
        )

    def read(self, folder: Path | None) -> dict[str, Split]:
        """The splits `train` and `test` from whichever layout lies in `folder`.

        The files may also lie where a clone of the hub's repository has them, or in a folder of the
        data set's name.

        Raises:
            DataError: the folder holds neither layout, or a file cannot be read.
        """
        folder = existing(folder, self.name, self.layout)
        for place in self._places(folder):
            if found := parquet_files(place):
                return {split: read_parquet(files, self.label) for split, files in found.items()}
            if (place / self.pickles).is_dir():
                return read_pickles(place, self.pickles, self.reader)
        raise nothing_there(folder, self.name, self.layout)

    def download(self, folder: Path) -> None:
        """Fetch the Python version into `folder` unless data are there; torchvision checks the sums.

        The files are unpacked beside their place and moved there at the end, so a broken download
        leaves nothing that looks like data.

        Raises:
            DataError: the files cannot be fetched, or are not the published ones.
        """
        places = self._places(folder)
        if any(parquet_files(place) or (place / self.pickles).exists() for place in places):
            return
        import torchvision.datasets

        with arriving(folder / self.pickles, self.name) as place:
            getattr(torchvision.datasets, self.reader)(str(place.parent), download=True)

    def _places(self, folder: Path) -> tuple[Path, ...]:
        return folder, folder / self.name, folder / "plain_text"


def existing(folder: Path | None, name: str, layout: str) -> Path:
    """`folder`, which must be there.

    Raises:
        DataError: it is not; the message says what to put there.
    """
    if folder is None or not folder.is_dir():
        raise DataError(
            f"the folder of {name} is not there" if folder else f"{name} has no folder",
            where=str(folder) if folder else None,
            fix=f"name a folder that holds {layout}",
        )
    return folder


def nothing_there(folder: Path, name: str, layout: str) -> DataError:
    """The error for a folder without the data set."""
    return DataError(f"the folder holds no images of {name}", where=str(folder), fix=f"put there {layout}")


@contextlib.contextmanager
def arriving(place: Path, name: str) -> Iterator[Path]:
    """A place beside `place` to download to, moved there when the block ends well.

    Args:
        place: where the file or folder shall lie.
        name: of the data set.

    Raises:
        DataError: the block failed to download or to write.
    """
    try:
        with beside(place, folder=True) as temporary:
            yield temporary / place.name
            (temporary / place.name).replace(place)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong checksum a RuntimeError
        raise DataError(
            f"{name} could not be downloaded: {error}",
            where=str(place),
            fix="try again, or fetch the published files by hand and put them there",
        ) from error


def parquet_files(folder: Path, train: str = "train", test: str = "test") -> dict[str, list[Path]] | None:
    """The parquet files of both splits by the word in their names, or None when one has none.

    Raises:
        DataError: a file has both words in its name, and would be trained and tested on.
    """
    files = {
        split: sorted(folder.glob(f"*{word}*.parquet")) for split, word in (("train", train), ("test", test))
    }
    if both := sorted({*files["train"]} & {*files["test"]}):
        raise DataError(
            f"a file has both '{train}' and '{test}' in its name",
            where=str(both[0]),
            fix="give the splits words that tell their files apart",
        )
    return files if all(files.values()) else None


def read_parquet(
    files: Sequence[Path], label: str, image: str | None = None, pixels: Pixels = Pixels()
) -> Split:
    """One split from parquet files in the Hugging Face layout: files as given, row order kept.

    Images are structs with the bytes of a file (PNG, WebP, ...); only about a thousand rows are in
    memory undecoded.

    Args:
        files: the split's files.
        label: column of the labels.
        image: column of the images; None is `img` or `image`, whichever is there.
        pixels: the form of the images.

    Returns:
        Images N x H x W x C, labels N, and the names of the classes where the files hold them.

    Raises:
        DataError: a file is truncated, lacks a column or holds an image that cannot be decoded; the
            message names the file and the row in it, from 0.
    """
    total = sum(_open(file).metadata.num_rows for file in files)
    images = np.empty((total, *pixels.shape), np.uint8)
    labels = np.empty(total, np.int64)
    done = 0
    title = f"reading {files[0].name}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    with progress(title, total) as advance:
        for file in files:
            first = done
            for encoded, numbers in _batches(file, label, image):
                for i, data in enumerate(encoded, start=done):
                    images[i] = pixels.decode(data, f"{file}, row {i - first}")
                labels[done : done + len(numbers)] = numbers
                done += len(numbers)
                advance(len(numbers))
    return Split(images, labels, source="parquet", classes=_class_names(files[0], label))


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
        images = np.ascontiguousarray(data.data)
        splits[name] = Split(
            images, np.array(data.targets, np.int64), source="python", classes=tuple(data.classes)
        )
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


def _batches(
    file: Path, label: str, image: str | None
) -> Iterator[tuple[list[bytes | None], NDArray[np.int64]]]:
    """Encoded images and labels of a file, about a thousand rows at a time."""
    import pyarrow as pa

    opened = _open(file)
    columns = opened.schema_arrow.names
    named = [image] if image else ["img", "image"]
    picture = next((name for name in named if name in columns), None)
    if picture is None or label not in columns:
        raise DataError(
            f"a column is missing: it has {', '.join(columns)}",
            where=str(file),
            fix=f"use files with the columns {image or 'img (or image)'} and {label}",
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


def _class_names(file: Path, label: str) -> tuple[str, ...]:
    """The class names that the Hugging Face schema records, or none."""
    found = (_open(file).schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        return tuple(json.loads(found)["info"]["features"][label]["names"])
    except (ValueError, KeyError, TypeError):
        return ()


def _broken(file: Path, error: Exception) -> DataError:
    return DataError(
        f"the file is damaged or truncated ({str(error).splitlines()[0]})",
        where=str(file),
        fix="get the file again",
    )
