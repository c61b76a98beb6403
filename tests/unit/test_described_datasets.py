"""A data set of one's own in a few lines of YAML, from the file to the prepared folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from kdpipe.api import ImageFiles
from kdpipe.core.errors import ConfigError, DataError, UnknownNameError
from kdpipe.engine.prepare import channel_statistics, load, prepare
from kdpipe.plan.cards import card, one_line
from kdpipe.plan.config import Config
from kdpipe.plan.datasets import all_datasets, find_dataset
from kdpipe.plan.resolve import resolve
from tests.unit.test_datasets import encode, pixels, write_parquet, write_tree


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    (folder / "datasets").mkdir(parents=True)
    return folder


def describe(config: Path, name: str = "mine", **settings: Any) -> Any:
    """Write the file and ask for the data set."""
    (config / "datasets" / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    return find_dataset(name, config)


def test_a_folder_of_images_in_two_lines(config: Path, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "data", test="test")
    spec = describe(config, format="folder", size=8)
    prepare(spec, tmp_path / "data", tmp_path / "out")
    found = load(tmp_path / "out", verify=True)
    assert np.array_equal(found.train.images, source[:4])
    assert (found.num_classes, found.shape, found.classes) == (2, (3, 8, 8), ("n02", "n10"))
    assert (found.mean, found.std) == channel_statistics(source[:4])


def test_a_zip_of_the_data_sets_name_is_read_too(config: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "x" / "mine", test="test")
    shutil.make_archive(str(tmp_path / "data" / "mine"), "zip", tmp_path / "x", "mine")
    prepare(describe(config, format="folder", size=8), tmp_path / "data", tmp_path / "out")
    assert len(load(tmp_path / "out").train.labels) == 4


@pytest.mark.parametrize("place", ["", "data"])
def test_a_parquet_folder(config: Path, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "hub" / place
    folder.mkdir(parents=True)
    source = pixels(3, side=8)
    for word, rows in (("train", [0, 1]), ("validation", [2])):
        write_parquet(
            folder / f"{word}-0.parquet", [encode(source[i]) for i in rows], rows, "picture", "kind"
        )
    spec = describe(
        config, format="parquet", size=8, test="validation", image="picture", label="kind", channels=1
    )
    prepare(spec, tmp_path / "hub", tmp_path / "out")
    found = load(tmp_path / "out")
    assert found.train.images.shape == (2, 8, 8, 1)
    assert found.num_classes == 3
    grey = np.asarray(Image.fromarray(source[2]).convert("L"))
    assert np.array_equal(found.test.images[0, :, :, 0], grey)


def test_a_parquet_file_is_of_one_split(config: Path, tmp_path: Path) -> None:
    for word in ("train", "test"):
        write_parquet(tmp_path / f"{word}-of-my-train.parquet", [encode(pixels(1, side=8)[0])], [0])
    with pytest.raises(DataError, match=r"(?s)both 'train' and 'test' in its name.*test-of-my-train"):
        prepare(describe(config, format="parquet", size=8), tmp_path, tmp_path / "out")


def test_files_on_disk_are_indexed_not_copied(config: Path, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "data", test="val", side=8)
    spec = describe(config, format="folder", size=7, test="val", on_disk=True)
    out = tmp_path / "out"
    prepare(spec, tmp_path / "data", out)
    found = load(out, verify=True)
    assert isinstance(found.train.images, ImageFiles)
    assert [found.train.images.path(i).name for i in range(4)] == ["0.png", "1.png"] * 2
    assert found.train.images.path(0).read_bytes() == encode(source[0])
    assert (out / "images").readlink() == tmp_path / "data"
    assert str(tmp_path) not in (out / "meta.json").read_text()
    assert all(0 < m < 1 for m in found.mean)  # of the views that networks see
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"(?s)no longer where they were.*let this link lead to them"):
        load(out)
    (out / "images").unlink()
    (out / "images").symlink_to(tmp_path / "moved")
    assert load(out, verify=True).train.images.path(0).exists()


def test_a_data_set_that_moved_is_prepared_again(config: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "data", test="test", side=8)
    spec = describe(config, format="folder", size=8, on_disk=True)
    prepare(spec, tmp_path / "data", tmp_path / "out")
    (tmp_path / "data").rename(tmp_path / "moved")
    prepare(spec, tmp_path / "moved", tmp_path / "out")
    assert load(tmp_path / "out").test.images.path(0).is_file()


def test_what_is_declared_is_checked(config: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "data", test="test")
    sizes = {"train": 5, "test": 2}
    spec = describe(config, format="folder", size=8, sizes=sizes, num_classes=2)
    with pytest.raises(DataError, match=r"mine has 5 images of 8 x 8 x 3 in its train split, but 4"):
        prepare(spec, tmp_path / "data", tmp_path / "out")
    spec = describe(config, format="folder", size=9)
    with pytest.raises(DataError, match=r"(?s)8 x 8 pixels, not 9 x 9.*0\.png.*resize: true"):
        prepare(spec, tmp_path / "data", tmp_path / "out")
    spec = describe(config, format="folder", size=8, num_classes=3)
    with pytest.raises(DataError, match="mine has 3 classes, but the train split has images of 2"):
        prepare(spec, tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_statistics_may_be_given_with_their_source(config: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "data", test="test")
    stats = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "stats_source": "a paper"}
    spec = describe(config, format="folder", size=8, **stats)
    prepare(spec, tmp_path / "data", tmp_path / "out")
    assert load(tmp_path / "out").mean == (0.1, 0.2, 0.3)
    assert spec.stats_source == "a paper"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 8}, "the key 'format' is missing"),
        ({"format": "folder"}, "the key 'size' is missing"),
        ({"format": "tar", "size": 8}, "'folder' or 'parquet'"),
        ({"formt": "folder", "size": 8}, "unknown key 'formt'"),
        ({"format": "parquet", "size": 8, "on_disk": True}, "on_disk goes with format: folder"),
        ({"format": "folder", "size": 8, "mean": [0.1, 0.2, 0.3]}, "mean, std and stats_source go together"),
        ({"format": "folder", "size": 8, "label": "kind"}, "they go with format: parquet"),
        ({"format": "parquet", "size": 8, "train": "test"}, "train and test are the same"),
        (
            {"format": "folder", "size": 8, "mean": [0.1], "std": [1], "stats_source": "x"},
            "3 numbers, one per channel",
        ),
    ],
)
def test_a_wrong_file_is_one_message(config: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){message}.*mine\.yaml"):
        describe(config, **settings)


def test_names_are_looked_up_together(config: Path) -> None:
    describe(config, format="folder", size=8)
    assert {"mine", "digits", "sine"} <= all_datasets(config).keys()
    with pytest.raises(UnknownNameError, match="did you mean 'mine'"):
        find_dataset("mne", config)
    with pytest.raises(ConfigError, match=r"(?s)regression problem.*where: study x"):
        find_dataset("sine", config, "study x")
    with pytest.raises(ConfigError, match="two data sets are called 'digits'"):
        describe(config, "digits", format="folder", size=8)


def test_what_changes_the_images_changes_the_revision(config: Path) -> None:
    first = describe(config, format="folder", size=8)
    same = describe(config, format="folder", size=8, title="Mine", licence="mine", num_classes=2)
    assert first.folder == same.folder
    for change in ({"size": 9}, {"resize": True}, {"test": "val"}, {"revision": 2}, {"on_disk": True}):
        assert describe(config, **{"format": "folder", "size": 8, **change}).folder != first.folder


def test_its_card_and_line(config: Path) -> None:
    spec = describe(config, format="folder", size=8, licence="CC0")
    assert one_line(spec) == "counted classes, 3x8x8, counted images"
    text = card("mine", config)
    assert "CC0" in text
    assert "train/CLASS/IMAGE and test/CLASS/IMAGE" in text
    assert not {"Paper", "Title", "Source"} & {line.partition(":")[0] for line in text.splitlines()}
    describe(config, format="folder", size=8, title="Flowers", url="https://example.org")
    assert card("mine", config).endswith("Title: Flowers\nSource: https://example.org")


def test_a_study_may_name_it(config: Path, tmp_path: Path) -> None:
    describe(config, format="folder", size=32)
    shutil.copytree("config/protocols", config / "protocols")
    (config / "studies").mkdir()
    study = {
        "title": "t",
        "dataset": "mine",
        "protocol": "crd240",
        "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
        "recipes": ["standard"],
        "methods": ["kd"],
        "scales": {"tiny": {"train_samples": 3, "epochs": 1}},
    }
    (config / "studies/s.yaml").write_text(yaml.safe_dump(study))

    def runs(**settings: Any) -> set[str]:
        return set(resolve(Config(studies=("s",), folder=str(config), **settings)).runs)

    before = runs()
    assert len(before) == 2
    assert before == runs()
    assert all(
        planned.run.spec.data.train_samples == 3
        for planned in resolve(Config(studies=("s",), folder=str(config), scale="tiny")).runs.values()
    )
    describe(config, format="folder", size=32, resize=True)
    assert not before & runs()


def test_the_guide_works_as_written(config: Path, tmp_path: Path) -> None:
    text = Path("docs/guides/add-a-dataset.md").read_text()
    (described,) = re.findall(r"```yaml\n(# yaml-language.*?)```", text, re.DOTALL)
    spec = describe(config, **yaml.safe_load(described))
    assert (spec.shape, spec.layout.startswith("train/CLASS/IMAGE and test/CLASS/IMAGE")) == (
        (3, 64, 64),
        True,
    )

    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/rings.py").write_text(program)
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 160), ("test", 40)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 16, 16, 1), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 2
    np.savez(tmp_path / "rings.npz", **arrays)
    command = [sys.executable, "-m", "kdpipe", "prepare", "rings", "--out", "out", "--source"]
    environment = {**os.environ, "KDPIPE_PLUGINS": str(tmp_path), "PYTHONPATH": str(Path.cwd())}

    def call(source: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, source], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    missing = call("nowhere")
    assert missing.returncode == 2
    assert "put there rings.npz" in missing.stderr
    assert call(".").returncode == 0
    assert np.array_equal(load(tmp_path / "out").test.images, arrays["test_images"])
