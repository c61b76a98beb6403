"""Reading parquet files, torchvision's folders and the digits; broken files give one clear message."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from kdpipe.core import registry
from kdpipe.core.errors import DataError
from kdpipe.datasets import _formats
from kdpipe.datasets._formats import Cifar, progress, read_parquet
from kdpipe.datasets.cifar10 import CIFAR10
from kdpipe.datasets.cifar100 import CIFAR100
from kdpipe.engine.prepare import pixel_hash

REAL = Path(os.environ.get("KDPIPE_DATA", Path(__file__).parents[3] / "shared" / "data"))
FILES = Cifar("tiny", label="label", pickles="cifar-10-batches-py", reader="CIFAR10")


def pixels(count: int, seed: int = 0, side: int = 32) -> NDArray[np.uint8]:
    """N x side x side x 3."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def encode(image: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, lossless=True)
    return file.getvalue()


def write_parquet(
    path: Path, images: list[bytes | None], labels: list[Any], image: str = "img", label: str = "label"
) -> Path:
    structs = [{"bytes": data, "path": None} for data in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({image: pa.array(structs, kind), label: labels}), path, row_group_size=2)
    return path


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("image", ["img", "image"])
def test_parquet_keeps_pixels_labels_and_order(tmp_path: Path, kind: str, image: str) -> None:
    source = pixels(5)
    for name, rows in (("b", [3, 4]), ("a", [0, 1, 2])):
        write_parquet(
            tmp_path / f"train-{name}.parquet", [encode(source[i], kind) for i in rows], rows, image
        )
    write_parquet(tmp_path / "test.parquet", [encode(source[4], kind)], [7], image)
    splits = FILES.read(tmp_path)
    assert np.array_equal(splits["train"].images, source.transpose(0, 3, 1, 2))
    assert splits["train"].labels.tolist() == [0, 1, 2, 3, 4]
    assert splits["test"].labels.tolist() == [7]
    assert (splits["train"].images.dtype, splits["train"].labels.dtype) == (np.uint8, np.int64)
    assert splits["train"].images.flags.c_contiguous
    assert splits["train"].source == "parquet"


def test_many_rows_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_formats, "ROWS", 3)
    source = pixels(8)
    file = write_parquet(tmp_path / "a.parquet", [encode(i) for i in source], list(range(8)))
    split = read_parquet([file, file], "label")
    assert np.array_equal(split.images, np.concatenate([source, source]).transpose(0, 3, 1, 2))
    assert split.labels.tolist() == [*range(8), *range(8)]


@pytest.mark.parametrize("place", ["tiny", "plain_text"])
def test_files_may_lie_one_level_down(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir()
    for split in ("train", "test"):
        write_parquet(tmp_path / place / f"{split}.parquet", [encode(pixels(1)[0])], [1])
    assert FILES.read(tmp_path)["test"].labels.tolist() == [1]


def test_a_grey_or_palette_image_becomes_colour(tmp_path: Path) -> None:
    grey = pixels(1)[0, :, :, 0]
    file = write_parquet(tmp_path / "a.parquet", [encode(grey)], [0])
    assert np.array_equal(read_parquet([file], "label").images[0], np.stack([grey] * 3))


@pytest.mark.parametrize("spec", [CIFAR10, CIFAR100], ids=lambda s: s.name)
def test_no_folder_says_what_to_put_where(spec: Any, tmp_path: Path) -> None:
    for folder in (None, tmp_path / "missing", tmp_path):
        with pytest.raises(
            DataError, match=rf"(?s){spec.name}.*train.*parquet.*cifar-10+-(python|batches-py)/"
        ):
            spec.read(folder)


def test_half_a_data_set_is_not_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [encode(pixels(1)[0])], [1])
    with pytest.raises(DataError, match="holds no images of tiny"):
        FILES.read(tmp_path)


@pytest.mark.parametrize("keep", [0, 200, -8])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    file = write_parquet(tmp_path / "a.parquet", [encode(i) for i in pixels(4)], [0] * 4)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"(?s)damaged or truncated.*a\.parquet.*get the file again"):
        read_parquet([file], "label")


def test_a_file_damaged_inside_is_named(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", [encode(i) for i in pixels(4)], [0] * 4)
    data = bytearray(file.read_bytes())
    data[4:400] = bytes(396)
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet"):
        read_parquet([file], "label")


@pytest.mark.parametrize("bad", [b"no image", None, b"", encode(pixels(1)[0])[:-900]])
def test_an_image_that_cannot_be_decoded_is_named_by_row(tmp_path: Path, bad: bytes | None) -> None:
    good = encode(pixels(1)[0])
    one = write_parquet(tmp_path / "a.parquet", [good], [0])
    two = write_parquet(tmp_path / "b.parquet", [good, good, bad], [0, 0, 0])
    with pytest.raises(DataError, match=r"(?s)cannot be decoded.*b\.parquet, row 2"):
        read_parquet([one, two], "label")


def test_an_image_of_another_size_is_named_by_row(tmp_path: Path) -> None:
    file = write_parquet(
        tmp_path / "a.parquet", [encode(pixels(1)[0]), encode(pixels(1, side=28)[0])], [0, 0]
    )
    with pytest.raises(DataError, match=r"(?s)28 x 28 pixels, not 32 x 32.*row 1"):
        read_parquet([file], "label")


@pytest.mark.parametrize("column", [{"label": "coarse"}, {"image": "picture"}])
def test_a_missing_column_is_named(tmp_path: Path, column: dict[str, str]) -> None:
    file = write_parquet(tmp_path / "a.parquet", [encode(pixels(1)[0])], [0], **column)
    with pytest.raises(DataError, match=r"(?s)a column is missing.*a\.parquet.*img \(or image\) and label"):
        read_parquet([file], "label")


@pytest.mark.parametrize("labels", [[0, None], [0.5, 1.0], ["cat", "dog"]])
def test_labels_that_are_no_whole_numbers_are_refused(tmp_path: Path, labels: list[Any]) -> None:
    file = write_parquet(tmp_path / "a.parquet", [encode(i) for i in pixels(2)], labels)
    with pytest.raises(DataError, match="whole numbers"):
        read_parquet([file], "label")


def test_images_that_are_no_structs_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"img": [b"bytes"], "label": [1]}), file)
    with pytest.raises(DataError, match="not images"):
        read_parquet([file], "label")


class OldPickler(pickle._Pickler):
    """Writes array types as the published files hold them: with `align=0` instead of False."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.dtype):
            function, (name, *_), state = value.__reduce__()
            return function, (name, 0, 1), state
        return NotImplemented


def write_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    """A CIFAR-10 folder of three training and two test images, its checksums made torchvision's."""
    torchvision = pytest.importorskip("torchvision.datasets")
    source = pixels(5)
    flat = source.transpose(0, 3, 1, 2).reshape(5, -1)
    folder.mkdir()
    sums = {}
    contents = {
        "data_batch_1": {"data": flat[:2], "labels": [4, 5]},
        "data_batch_2": {"data": flat[2:3], "labels": [6]},
        "test_batch": {"data": flat[3:], "labels": [7, 8]},
        "batches.meta": {"label_names": list("abcdefghij")},
    }
    for name, content in contents.items():
        with open(folder / name, "wb") as file:
            OldPickler(file, protocol=2).dump(content)
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    training = [[name, sums[name]] for name in ("data_batch_1", "data_batch_2")]
    monkeypatch.setattr(torchvision.CIFAR10, "train_list", training)
    monkeypatch.setattr(torchvision.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(torchvision.CIFAR10, "meta", meta)
    return source


def test_torchvision_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_pickles(tmp_path / "cifar-10-batches-py", monkeypatch)
    splits = CIFAR10.read(tmp_path)
    assert np.array_equal(splits["train"].images, source[:3].transpose(0, 3, 1, 2))
    assert np.array_equal(splits["test"].images, source[3:].transpose(0, 3, 1, 2))
    assert splits["train"].labels.tolist() == [4, 5, 6]
    assert splits["test"].labels.tolist() == [7, 8]
    assert splits["test"].labels.dtype == np.int64
    assert splits["train"].source == "python"


def test_changed_pickles_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_pickles(folder, monkeypatch)
    trap = tmp_path / "ran"
    (folder / "data_batch_2").write_bytes(pickle.dumps(Trap(str(trap))))
    with pytest.raises(DataError, match=r"(?s)checksums differ.*cifar-10-batches-py"):
        CIFAR10.read(tmp_path)
    assert not trap.exists()


class Trap:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_progress_prints_a_line_per_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading x", 1000) as advance:
        for _ in range(100):
            advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"reading x: {n:,} of 1,000" for n in range(100, 1001, 100)]


def test_progress_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress("reading x", 10) as advance:
        advance(10)
    shown = capsys.readouterr()
    assert "reading x" in shown.err
    assert "100%" in shown.err
    assert shown.out == ""


def test_digits_are_the_same_bytes_everywhere() -> None:
    splits = registry.datasets.get("digits").read(None)
    assert pixel_hash(splits["train"].images) == (
        "97a0b24f613c70d86ecff2306622aafea1447dd2ae753792640bd96c4c923ad5"
    )
    assert pixel_hash(splits["test"].images) == (
        "99f5e7de88647e6624dbe760728f47ffa1115c4006bc9cf972448c036a4a3669"
    )
    assert sorted(set(np.unique(splits["train"].images))) == [round(255 * v / 16) for v in range(17)]


def test_digits_hold_every_scan_once() -> None:
    from sklearn.datasets import load_digits

    splits = registry.datasets.get("digits").read(None).values()
    found = np.concatenate([s.images.reshape(-1, 64) for s in splits])
    labels = np.concatenate([s.labels for s in splits])
    grey, numbers = load_digits(return_X_y=True)
    rows = sorted((*np.rint(image / 255 * 16), label) for image, label in zip(found, labels, strict=True))
    assert rows == sorted((*image, label) for image, label in zip(grey, numbers, strict=True))


@pytest.mark.parametrize(
    ("split", "count", "checksum"),
    [
        ("train", 10_000, "ab01a049653f7634266f82f866394c488308a5cdcfb5e572a514931371fc7887"),
        ("test", 2_000, "c1a43cfe7fb8d4623b2f7a6bf55424bab85d3a068b98c34d886caa5f0c00dc8e"),
    ],
)
def test_real_photographs_decode_to_the_published_pixels(split: str, count: int, checksum: str) -> None:
    folder = REAL / "cifar10-two-class"
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder.name} is not in the folder KDPIPE_DATA (../shared/data)")
    read = read_parquet(sorted(folder.glob(f"*{split}*.parquet")), "label")
    assert pixel_hash(read.images) == checksum
    assert np.bincount(read.labels).tolist() == [count // 2, count // 2]
