"""Reading parquet files, torchvision's folders and the digits; broken files give one clear message."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from kdpipe.api import ImageFiles
from kdpipe.core import registry
from kdpipe.core.errors import DataError
from kdpipe.datasets import _formats, _trees
from kdpipe.datasets._formats import Cifar, Pixels, arriving, progress, read_parquet
from kdpipe.datasets._trees import ClassFolders
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
    assert np.array_equal(splits["train"].images, source)
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
    assert np.array_equal(split.images, np.concatenate([source, source]))
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
    assert np.array_equal(read_parquet([file], "label").images[0], np.stack([grey] * 3, axis=-1))


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
    assert np.array_equal(splits["train"].images, source[:3])
    assert np.array_equal(splits["test"].images, source[3:])
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


# class folders, archives


TREE = ClassFolders("tiny", Pixels(8), test="val", inner="tiny-200")


def write_tree(root: Path, test: str = "val", side: int = 8) -> NDArray[np.uint8]:
    """Two classes of two training images and one test image each; the pictures in order of their files."""
    source = pixels(6, side=side)
    names = [f"train/{c}/images/{i}.png" for c in ("n02", "n10") for i in (0, 1)]
    names += [f"{test}/{c}/a.png" for c in ("n02", "n10")]
    for name, image in zip(names, source, strict=True):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image))
    (root / "train/n02/boxes.txt").write_text("not an image")
    (root / "train/n02/.hidden.png").write_text("left by an operating system")
    return source


def annotate(root: Path, lines: list[str]) -> None:
    """Turn the test folder into Tiny ImageNet's layout."""
    (root / "val/images").mkdir()
    (root / "val/n02/a.png").rename(root / "val/images/val_0.JPEG")
    (root / "val/n10/a.png").rename(root / "val/images/val_1.JPEG")
    (root / "val/val_annotations.txt").write_text("\n".join(lines) + "\n")


def write_zip(root: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*")):
            file.write(path, path.relative_to(root.parent))
    return archive


@pytest.mark.parametrize("place", ["", "tiny-200"])
def test_class_folders_are_read(tmp_path: Path, place: str) -> None:
    source = write_tree(tmp_path / place)
    splits = TREE.read(tmp_path)
    assert np.array_equal(splits["train"].images, source[:4])
    assert splits["train"].labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(splits["test"].images, source[4:])
    assert splits["test"].labels.tolist() == [0, 1]
    assert (splits["train"].classes, splits["train"].source) == (("n02", "n10"), "folder")


def test_tiny_imagenets_annotations_label_its_test_images(tmp_path: Path) -> None:
    source = write_tree(tmp_path)
    annotate(tmp_path, ["val_1.JPEG\tn10\t0\t0\t7\t7", "val_0.JPEG\tn02\t0\t0\t7\t7", ""])
    test = TREE.read(tmp_path)["test"]
    assert np.array_equal(test.images, source[[5, 4]])
    assert test.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [("val_9.JPEG\tn02\t0", "an image that is not there"), ("val_0.JPEG\tn99\t0", "an unknown class")],
)
def test_a_wrong_annotation_is_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    write_tree(tmp_path)
    annotate(tmp_path, ["val_1.JPEG\tn10\t0\t0\t7\t7", line])
    with pytest.raises(DataError, match=rf"(?s)line 2 names {message}.*val_annotations\.txt"):
        TREE.read(tmp_path)


def test_an_archive_is_read_without_unpacking(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "x" / "tiny-200")
    annotate(tmp_path / "x" / "tiny-200", ["val_0.JPEG\tn02", "val_1.JPEG\tn10"])
    folder = tmp_path / "data"
    folder.mkdir()
    write_zip(tmp_path / "x" / "tiny-200", folder / "tiny-200.zip")
    splits = TREE.read(folder)
    assert np.array_equal(splits["train"].images, source[:4])
    assert np.array_equal(splits["test"].images, source[4:])
    assert splits["train"].source == "archive"
    assert [path.name for path in folder.iterdir()] == ["tiny-200.zip"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_tree(tmp_path / "x" / "tiny-200")
    (tmp_path / "data").mkdir()
    return write_zip(tmp_path / "x" / "tiny-200", tmp_path / "data" / "tiny-200.zip")


@pytest.mark.parametrize(
    "name", ["../escaped.png", "/escaped.png", "tiny-200/../../escaped.png", "C:\\x.png"]
)
def test_an_archive_with_a_path_that_leads_out_is_refused(archive: Path, name: str) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"x")
    with pytest.raises(DataError, match=r"(?s)leads out of it.*tiny-200\.zip"):
        TREE.read(archive.parent)
    assert not list(archive.parents[1].rglob("escaped.png"))


def test_an_archive_with_a_link_is_refused(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        link = zipfile.ZipInfo("tiny-200/train/n02/images/2.png")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"(?s)a link.*images/2\.png"):
        TREE.read(archive.parent)


def test_an_archive_with_a_huge_file_is_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trees, "LARGEST", 100)
    with pytest.raises(DataError, match=r"(?s)bytes, which is no image.*\.png"):
        TREE.read(archive.parent)


@pytest.mark.parametrize("keep", [0, 500, -30])
def test_a_broken_download_never_counts(archive: Path, keep: int) -> None:
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"(?s)not downloaded to its end.*tiny-200\.zip.*get it again"):
        TREE.read(archive.parent)


def test_a_changed_byte_in_an_archive_is_found_and_its_file_named(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    place = data.index(b"tiny-200/train/n02/images/1.png") + 80
    data[place] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"(?s)the archive is damaged.*n02/images/1\.png"):
        TREE.read(archive.parent)


def test_a_broken_image_in_a_folder_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "train/n10/images/1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"(?s)cannot be decoded.*n10.images.1\.png"):
        TREE.read(tmp_path)


def test_a_test_image_of_an_unknown_class_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "val/n02").rename(tmp_path / "val/n77")
    with pytest.raises(DataError, match=r"(?s)no class folder of the train split.*n77.a\.png"):
        TREE.read(tmp_path)


def test_an_image_outside_the_class_folders_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "val/loose.png").write_bytes(encode(pixels(1, side=8)[0]))
    with pytest.raises(DataError, match=r"(?s)no class folder.*loose\.png"):
        TREE.read(tmp_path)


@pytest.mark.parametrize("empty", ["train", "val"])
def test_a_split_without_images_is_an_error(tmp_path: Path, empty: str) -> None:
    write_tree(tmp_path)
    shutil.rmtree(tmp_path / empty)
    (tmp_path / empty).mkdir()
    with pytest.raises(DataError, match=rf"(?s)holds no .*{empty}.*train/CLASS/IMAGE"):
        TREE.read(tmp_path)


def test_no_tree_says_what_to_put_where(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "missing", tmp_path):
        with pytest.raises(DataError, match=r"(?s)tiny.*train/CLASS/IMAGE and val.*tiny-200\.zip"):
            TREE.read(folder)


def test_files_stay_on_disk_when_asked(tmp_path: Path) -> None:
    write_tree(tmp_path)
    splits = ClassFolders("tiny", Pixels(8), test="val", on_disk=True).read(tmp_path)
    images = splits["train"].images
    assert isinstance(images, ImageFiles)
    assert images.path(3) == tmp_path / "train/n10/images/1.png"
    assert (len(images), images.side) == (4, 8)
    assert splits["test"].labels.tolist() == [0, 1]


def test_images_of_other_sizes_are_errors_or_resized(tmp_path: Path) -> None:
    wide = np.zeros((6, 10, 3), np.uint8)
    wide[:, 2:8] = 200  # the square in the middle
    data = encode(wide)
    with pytest.raises(DataError, match=r"(?s)10 x 6 pixels, not 4 x 4.*a\.png"):
        Pixels(4).decode(data, "a.png")
    assert (Pixels(6, resize=True).decode(data, "a.png") == 200).all()
    assert Pixels(4, channels=1, resize=True).decode(data, "a.png").shape == (4, 4, 1)


# downloads


def test_a_download_arrives_whole_or_not_at_all(tmp_path: Path) -> None:
    with arriving(tmp_path / "data" / "x", "tiny") as place:
        place.mkdir()
        (place / "file").write_text("all of it")
    assert (tmp_path / "data/x/file").read_text() == "all of it"

    def breaks(error: Exception) -> None:
        with arriving(tmp_path / "data" / "y", "tiny") as place:
            place.write_text("a par")
            raise error

    for error in (URLError("no route"), RuntimeError("File not found or corrupted.")):
        with pytest.raises(DataError, match=r"(?s)tiny could not be downloaded.*fetch the published files"):
            breaks(error)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["x"]


def test_cifar_is_downloaded_by_torchvision_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision.datasets")
    source = write_pickles(tmp_path / "server", monkeypatch)
    calls: list[str] = []

    def fetch(self: Any) -> None:
        calls.append(self.root)
        shutil.copytree(tmp_path / "server", Path(self.root) / self.base_folder)

    monkeypatch.setattr(torchvision.CIFAR10, "download", fetch)
    for _ in range(2):  # the second time it is there
        CIFAR10.download(tmp_path / "data")
    assert len(calls) == 1
    assert np.array_equal(CIFAR10.read(tmp_path / "data")["test"].images, source[3:])


def test_data_that_are_there_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [encode(pixels(1)[0])], [1])
    CIFAR10.download(tmp_path)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", lambda *_: pytest.fail("downloaded"))
    (tmp_path / "tiny-imagenet-200").mkdir()
    registry.datasets.get("tiny_imagenet").download(tmp_path)
    assert not (tmp_path / "cifar-10-batches-py").exists()


def test_tiny_imagenet_is_downloaded_with_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(url: str, root: str, name: str, md5: str) -> None:
        assert (url.rpartition("/")[2], len(md5)) == ("tiny-imagenet-200.zip", 32)
        (Path(root) / name).write_bytes(b"archive")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    registry.datasets.get("tiny_imagenet").download(tmp_path / "new")
    assert (tmp_path / "new/tiny-imagenet-200.zip").read_bytes() == b"archive"


# two classes, sine


def test_two_classes_are_taken_from_all_ten(tmp_path: Path) -> None:
    source = pixels(5)
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for split in ("train", "test"):
        write_parquet(folder / f"{split}.parquet", [encode(i) for i in source], [3, 1, 0, 9, 1])
    for asked in (tmp_path / "cifar10_two_class", folder):
        split = registry.datasets.get("cifar10_two_class").read(asked)["train"]
        assert np.array_equal(split.images, source[[1, 2, 4]])
        assert split.labels.tolist() == [1, 0, 1]
        assert split.classes == ("airplane", "automobile")


def test_class_names_are_those_of_the_hub(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", [encode(pixels(1)[0])], [0])
    table = pq.read_table(file)
    features = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), file)
    assert read_parquet([file], "label").classes == ("cat", "dog")


def test_the_sine_is_the_papers() -> None:
    drawn = [registry.datasets.get("sine").draw(seed) for seed in range(400)]
    one = drawn[0]
    assert np.allclose(one.x[:, 0], np.linspace(0, 1, 11))
    assert np.allclose(one.clean, np.sin(2 * np.pi * one.x[:, 0]))
    noise = np.concatenate([d.y - d.clean for d in drawn])
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(0.5, abs=0.02)
