"""Drill 7: hostile files: refused with one message; nothing executed or written outside, no memory filled."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from kdpipe.core import registry
from tests.reliability.conftest import one_message

pytestmark = pytest.mark.slow


class Evil:
    """Unpickled, it leaves a file behind."""

    def __init__(self, marker) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def png(width: int, height: int) -> bytes:
    """A grey image of one colour: a few kilobytes for any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeezed, row = zlib.compressobj(9), bytes(1 + width)
    rows = b"".join(squeezed.compress(row) for _ in range(height)) + squeezed.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def weights():
    return registry.models.get("resnet8").build(10, 1).state_dict()


def zipped(*members, kept=zipfile.ZIP_STORED) -> bytes:
    """A zip archive of (name or ZipInfo, content)."""
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", kept) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return found.getvalue()


def special(kind: int, name: str = "own/train/a/x.png"):
    """An archive's member that is no plain file."""
    member = zipfile.ZipInfo(name)
    member.external_attr = (kind | 0o777) << 16
    return member, b"/etc/passwd"


def legacy_tar(marker) -> bytes:
    """The oldest format of torch.save: a tar archive, here with a path that leads out."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w") as tar:
        for name, content in (("../../outside", b"x"), ("pickle", pickle.dumps(Evil(marker)))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return found.getvalue()


def torch_bomb() -> bytes:
    """A checkpoint whose largest tensor is 400 MB of compressed zeros."""
    found = io.BytesIO()
    torch.save({"a": torch.zeros(10), "b": torch.zeros(10**8)}, found)
    with zipfile.ZipFile(found) as archive:
        members = [(m.filename, archive.read(m)) for m in archive.infolist()]
    return zipped(*members, kept=zipfile.ZIP_DEFLATED)


def torch_evil(marker) -> bytes:
    found = io.BytesIO()
    torch.save({"model": weights(), "optimizer": Evil(marker)}, found)
    return found.getvalue()


CHECKPOINTS = {
    "a pickle that runs code": (torch_evil, "may run code; nothing of it was loaded"),
    "a bare pickle that runs code": (lambda m: pickle.dumps(Evil(m)), "truncated or no checkpoint"),
    "the oldest format, a path out": (legacy_tar, "truncated or no checkpoint"),
    "a bomb of compressed zeros": (lambda m: torch_bomb(), "would unpack to more than it is"),
    "a zip with a path out": (lambda m: zipped(("../../outside", b"x")), "truncated or no checkpoint"),
    "a header of 2^62 bytes": (lambda m: struct.pack("<Q", 2**62) + b"{}", "truncated or no checkpoint"),
    "a header of 1 GB": (lambda m: struct.pack("<Q", 2**30) + b"{" + b" " * 99, "truncated or no checkpoint"),
    "offsets beyond the file": (
        lambda m: save(weights()).replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1),
        "truncated or no checkpoint",
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_to_import(driver, tmp_path, case):
    make, words = CHECKPOINTS[case]
    marker, inner = tmp_path / "marker", tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "file.pth").write_bytes(make(marker))
    argv = ["import-teacher", "file.pth", "--model", "resnet8", "--dataset", "digits", "--results", "r"]
    before = sorted(tmp_path.rglob("*"))
    done = driver.call(argv, inner)
    assert done.code == 2, done.text
    one_message(done.text, words, "file.pth", "fix:")
    assert sorted(tmp_path.rglob("*")) == before


def image(pixels=None) -> bytes:
    found = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8) if pixels is None else pixels).save(found, "png")
    return found.getvalue()


def parquet(images, labels) -> bytes:
    """A parquet file in the Hugging Face layout, or what pretends to be one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = io.BytesIO()
    pq.write_table(pa.table({"img": images, "label": labels}), found)
    return found.getvalue()


def parquets(images, labels):
    return {f"{split}-0.parquet": parquet(images, labels) for split in ("train", "test")}


GOOD = [{"bytes": image(), "path": None}] * 2
MEMBERS = [(f"own/{split}/{c}/1.png", image()) for split in ("train", "test") for c in "ab"]
FOLDER, PARQUET = {"format": "folder"}, {"format": "parquet"}
DATA = {
    "a path out": (FOLDER, {"own.zip": zipped(*MEMBERS, ("own/../../../out.png", image()))}, "leads out"),
    "an absolute path": (FOLDER, {"own.zip": zipped(*MEMBERS, ("/tmp/kdpipe-out.png", b"x"))}, "leads out"),
    "a link": (FOLDER, {"own.zip": zipped(*MEMBERS, special(0o120000))}, "holds a link"),
    "a device": (FOLDER, {"own.zip": zipped(*MEMBERS, special(0o020000))}, "holds a device or pipe"),
    "a pipe": (FOLDER, {"own.zip": zipped(*MEMBERS, special(0o010000))}, "holds a device or pipe"),
    "a member of 100 MB": (
        FOLDER,
        {"own.zip": zipped(*MEMBERS, ("own/train/a/x.png", bytes(10**8)), kept=zipfile.ZIP_DEFLATED)},
        "bytes, which is no image",
    ),
    "an image bomb": (
        FOLDER,
        {"train/a/1.png": png(30_000, 30_000), "train/b/1.png": image(), "test/a/1.png": image()},
        "train/a/1.png",
    ),
    "an image bomb to resize": (
        {**FOLDER, "resize": True},
        {"train/a/1.png": png(30_000, 30_000), "train/b/1.png": image(), "test/a/1.png": image()},
        "train/a/1.png",
    ),
    "images that are texts": (PARQUET, parquets(["x", "y"], [0, 1]), "are not images (bytes, path)"),
    "images that are numbers": (PARQUET, parquets([1, 2], [0, 1]), "are not images (bytes, path)"),
    "labels that are texts": (PARQUET, parquets(GOOD, ["0", "1"]), "whole numbers"),
    "labels that are fractions": (PARQUET, parquets(GOOD, [0.5, 1.5]), "whole numbers"),
    "labels that are missing": (PARQUET, parquets(GOOD, [0, None]), "whole numbers"),
    "labels below zero": (PARQUET, parquets(GOOD, [0, -5]), "label"),
    "bytes that are no image": (
        PARQUET,
        parquets([{"bytes": b"GIF89a", "path": "/etc/passwd"}] * 2, [0, 1]),
        "cannot be decoded",
    ),
    "a pickle instead of shares": (
        FOLDER,
        {**{n.removeprefix("own/"): c for n, c in MEMBERS}, "test_reference.npy": None},
        "test_reference.npy",
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_a_data_set(driver, tmp_path, case):
    about, files, words = DATA[case]
    place, marker = tmp_path / "a" / "data" / "own", tmp_path / "marker"
    (tmp_path / "a/config/datasets").mkdir(parents=True)
    (tmp_path / "a/config/datasets/own.yaml").write_text(yaml.safe_dump({"size": 8, "channels": 1, **about}))
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            np.save(place / name, np.array([Evil(marker)], object), allow_pickle=True)
        else:
            (place / name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    argv = ["prepare", "own", "--source", "data/own", "--out", "results/data/own"]
    done = driver.call(argv, tmp_path / "a", memory=4 * 2**30)
    assert done.code == 2, done.text
    one_message(done.text, words)
    left = [f for f in sorted(tmp_path.rglob("*")) if f not in before and f.name not in ("results", "data")]
    assert not left
    assert not os.path.exists("/tmp/kdpipe-out.png")


def objects(marker) -> bytes:
    """Predictions with arrays of Python objects."""
    found = io.BytesIO()
    evil = np.array([Evil(marker)], object)
    np.savez(found, test_logits=evil, test_labels=evil, test_index=evil)
    return found.getvalue()


def test_predictions_of_objects(lab, tmp_path):
    import shutil

    shutil.copytree(lab.results.run(lab.kinds["student"]).root, tmp_path / "run")
    (tmp_path / "run/predictions.npz").write_bytes(objects(tmp_path / "marker"))
    done = lab.call(["evaluate", "--run", tmp_path / "run"])
    assert done.code == 2, done.text
    one_message(done.text, "predictions cannot be read: Object arrays cannot be loaded", "predictions.npz")
    assert not (tmp_path / "marker").exists()


BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
)


def test_a_study_of_a_billion_aliases(driver, tmp_path):
    (tmp_path / "config/studies").mkdir(parents=True)
    (tmp_path / "config/config.yaml").write_text("studies: [a]\n")
    (tmp_path / "config/studies/a.yaml").write_text(f"{BOMB}\ntitle: *a11\n")
    done = driver.call(["plan"], tmp_path, memory=4 * 2**30)
    assert done.code == 2, done.text
    one_message(done.text, "its aliases (*name) make it far too large", "config/studies/a.yaml")
