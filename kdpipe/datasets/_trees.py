"""Readers of image sets in class folders, on disk or in a zip archive.

An archive is never unpacked: its members are read into memory one by one, so nothing in it can end up
in a place of its choice, and a download that broke off (which has no table of contents) is an error.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from kdpipe.api import ImageFiles, Split
from kdpipe.core.errors import DataError
from kdpipe.datasets._formats import Pixels, existing, nothing_there, progress

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
LARGEST = 64 * 2**20  # bytes of an archive's member: far more than any image has
ANNOTATIONS = "val_annotations.txt"  # Tiny ImageNet: file name, class, box


class Folder:
    """The files below a folder, by their paths within it.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self, below: str) -> list[str]:
        """Paths of all files below the folder `below`, sorted."""
        try:
            return sorted(self._walk(below)) if (self.root / below).is_dir() else []
        except OSError as error:
            place = str(error.filename or self.root)
            raise DataError(f"the folder cannot be read: {error.strerror}", where=place) from error

    def read(self, file: str) -> bytes:
        """A file's bytes."""
        try:
            return (self.root / file).read_bytes()
        except OSError as error:
            raise DataError(f"the file cannot be read: {error.strerror}", where=self.where(file)) from error

    def where(self, file: str) -> str:
        """The file's place, for messages."""
        return str(self.root / file)

    def _walk(self, below: str) -> Iterator[str]:
        with os.scandir(self.root / below) as entries:
            for entry in entries:
                path = f"{below}/{entry.name}"
                if entry.is_dir():
                    yield from self._walk(path)
                else:
                    yield path


class Archive:
    """The files in a zip archive, read in place.

    Args:
        path: the archive.
        inner: folder within it that counts as its root.

    Raises:
        DataError: it is damaged, or holds a link or a path that leads out of it.
    """

    def __init__(self, path: Path, inner: str = "") -> None:
        self.path, self.prefix = path, f"{inner}/" if inner else ""
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise DataError(
                f"the archive is damaged or was not downloaded to its end ({error})",
                where=str(path),
                fix="delete it and get it again",
            ) from error
        for member in self.zip.infolist():
            self._check(member)
        self.names = sorted(
            name.removeprefix(self.prefix)
            for name in self.zip.namelist()
            if name.startswith(self.prefix) and not name.endswith("/")
        )

    def files(self, below: str) -> list[str]:
        """Paths of all files below the folder `below`, sorted."""
        return [name for name in self.names if name.startswith(f"{below}/")]

    def read(self, file: str) -> bytes:
        """A file's bytes, its checksum compared."""
        try:
            return self.zip.read(self.prefix + file)
        except KeyError:
            raise DataError("the archive lacks a file", where=self.where(file)) from None
        except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError) as error:
            raise DataError(
                f"the archive is damaged ({error})",
                where=self.where(file),
                fix="delete the archive and get it again",
            ) from error

    def where(self, file: str) -> str:
        """The file's place, for messages."""
        return f"{self.path}, file {self.prefix}{file}"

    def _check(self, member: zipfile.ZipInfo) -> None:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        escapes = path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1])
        kind = stat.S_IFMT(member.external_attr >> 16)
        if escapes or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            special = "a link" if kind == stat.S_IFLNK else "a device or pipe"
            raise DataError(
                f"the archive holds {'a path that leads out of it' if escapes else special}",
                where=f"{self.path}, file {member.filename}",
                fix="use the published archive",
            )
        if member.file_size > LARGEST:
            raise DataError(
                f"the archive holds a file of {member.file_size:,} bytes, which is no image",
                where=f"{self.path}, file {member.filename}",
                fix="use the published archive",
            )


@dataclass(frozen=True)
class ClassFolders:
    """A set with a folder per split and, in it, a folder per class; labels follow the sorted names.

    Images may lie at any depth in their class's folder. The test split may instead hold Tiny
    ImageNet's `val_annotations.txt` (a line per image: file name and class, tab-separated) and its
    images in `images/`.

    Attributes:
        name: of the data set.
        pixels: the form of the images.
        train, test: folders of the splits.
        inner: name of the published folder, or archive (`<inner>.zip`), that holds the splits; they
            may also lie in the data set's folder itself.
        on_disk: keep the images in their files; only an index is made. Not from an archive.
    """

    name: str
    pixels: Pixels
    train: str = "train"
    test: str = "test"
    inner: str = ""
    on_disk: bool = False

    @property
    def layout(self) -> str:
        """What must lie in the data set's folder, for people."""
        inner = f" (or {self.inner}/ or {self.inner}.zip with these)" if self.inner else ""
        return f"{self.train}/CLASS/IMAGE and {self.test}/CLASS/IMAGE{inner}"

    def read(self, folder: Path | None) -> dict[str, Split]:
        """The splits `train` and `test` from the folder or archive that lies in `folder`.

        Raises:
            DataError: there is none, or a file is missing, damaged or of an unknown class.
        """
        folder = existing(folder, self.name, self.layout)
        tree = self._tree(folder)
        kind = "archive" if isinstance(tree, Archive) else "folder"
        files, labels, classes = self._train(tree)
        found = {"train": (files, labels), "test": self._test(tree, classes)}
        splits = {}
        for split, (names, numbers) in found.items():
            if self.on_disk and isinstance(tree, Folder):
                encoded = np.array([os.fsencode(name) for name in names])
                images: NDArray[np.uint8] | ImageFiles = ImageFiles(tree.root, encoded, self.pixels.side)
            else:
                images = self._decode(tree, names, f"reading {self.name}, {split}")
            splits[split] = Split(images, np.array(numbers, np.int64), kind, tuple(classes))
        return splits

    def _tree(self, folder: Path) -> Folder | Archive:
        places = [folder, *([folder / self.inner] if self.inner else [])]
        for place in places:
            if (place / self.train).is_dir() and (place / self.test).is_dir():
                return Folder(place)
        archive = folder / f"{self.inner}.zip"
        if self.inner and not self.on_disk and archive.is_file():
            return Archive(archive, self.inner)
        raise nothing_there(folder, self.name, self.layout)

    def _train(self, tree: Folder | Archive) -> tuple[list[str], list[int], list[str]]:
        files = _images(tree, self.train)
        classes = sorted({_class_of(file, self.train) for file in files} - {""})
        if not classes:
            raise DataError(
                "the folder holds no class folders with images",
                where=tree.where(self.train),
                fix=f"put there {self.layout}",
            )
        return *self._labelled(tree, files, self.train, classes), classes

    def _test(self, tree: Folder | Archive, classes: list[str]) -> tuple[list[str], list[int]]:
        if f"{self.test}/{ANNOTATIONS}" in tree.files(self.test):
            return self._annotated(tree, classes)
        files = _images(tree, self.test)
        if not files:
            raise DataError(
                "the folder holds no images", where=tree.where(self.test), fix=f"put there {self.layout}"
            )
        return self._labelled(tree, files, self.test, classes)

    def _labelled(
        self, tree: Folder | Archive, files: list[str], split: str, classes: list[str]
    ) -> tuple[list[str], list[int]]:
        number = {name: label for label, name in enumerate(classes)}
        for file in files:
            if _class_of(file, split) not in number:
                raise DataError(
                    f"an image lies in no class folder of the {self.train} split",
                    where=tree.where(file),
                    fix=f"use {self.layout}, with the same classes in both",
                )
        return files, [number[_class_of(file, split)] for file in files]

    def _annotated(self, tree: Folder | Archive, classes: list[str]) -> tuple[list[str], list[int]]:
        file = f"{self.test}/{ANNOTATIONS}"
        number = {name: label for label, name in enumerate(classes)}
        there = set(_images(tree, self.test))
        names, labels = [], []
        for count, line in enumerate(tree.read(file).decode("utf-8", "replace").splitlines(), start=1):
            if not line.strip():
                continue
            name, _, rest = line.partition("\t")
            path, label = f"{self.test}/images/{name}", number.get(rest.split("\t")[0].strip())
            if path not in there or label is None:
                wrong = "an unknown class" if path in there else "an image that is not there"
                raise DataError(
                    f"line {count} names {wrong}", where=tree.where(file), fix="get the data set again"
                )
            names.append(path)
            labels.append(label)
        return names, labels

    def _decode(self, tree: Folder | Archive, names: Sequence[str], title: str) -> NDArray[np.uint8]:
        images = np.empty((len(names), *self.pixels.shape), np.uint8)
        with progress(title, len(names)) as advance:
            for i, name in enumerate(names):
                images[i] = self.pixels.decode(tree.read(name), tree.where(name))
                advance(1)
        return images


def _images(tree: Folder | Archive, split: str) -> list[str]:
    return [
        file
        for file in tree.files(split)
        if file.lower().endswith(SUFFIXES) and not PurePosixPath(file).name.startswith(".")
    ]


def _class_of(file: str, split: str) -> str:
    """The class folder that a file lies in; empty for one that lies in none."""
    name, slash, _ = file.removeprefix(f"{split}/").partition("/")
    return name if slash else ""
