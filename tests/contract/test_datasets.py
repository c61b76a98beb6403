"""What every registered data set promises; those that come from files are checked where they lie."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from kdpipe.api import DatasetSpec, ImageFiles, RegressionSpec
from kdpipe.core import registry
from kdpipe.core.errors import DataError
from kdpipe.engine.prepare import Prepared, channel_statistics, load, prepare
from kdpipe.plan.cards import card, one_line

REAL = Path(os.environ.get("KDPIPE_DATA", Path(__file__).parents[3] / "shared" / "data"))
PIXELS = {  # SHA-256 of the pixels, N x H x W x C, in the order of the rows
    "digits": {
        "train": "97a0b24f613c70d86ecff2306622aafea1447dd2ae753792640bd96c4c923ad5",
        "test": "99f5e7de88647e6624dbe760728f47ffa1115c4006bc9cf972448c036a4a3669",
    },
    "cifar10_two_class": {
        "train": "ab01a049653f7634266f82f866394c488308a5cdcfb5e572a514931371fc7887",
        "test": "c1a43cfe7fb8d4623b2f7a6bf55424bab85d3a068b98c34d886caa5f0c00dc8e",
    },
    "cifar100": {
        "train": "8d64c23804246758b921cb7b985876b85b12a45592ad70c5414a732da69cb6d0",
        "test": "3c7c4752eaeec862901bf06251e7f230d5006978ac6dceedd5f7ffc925693414",
    },
}
SPECS = [spec for _, spec in registry.datasets.items() if isinstance(spec, DatasetSpec)]
PROBLEMS = [spec for _, spec in registry.datasets.items() if isinstance(spec, RegressionSpec)]
FROM_FILES = [spec for spec in SPECS if not spec.embedded]
named = {"ids": lambda spec: spec.name}


@pytest.fixture(scope="module", params=SPECS, **named)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DatasetSpec, Path]:
    """A data set and the folder it was prepared in."""
    spec = request.param
    source = next((p for p in (REAL / spec.name, REAL / spec.name.replace("_", "-")) if p.is_dir()), None)
    if not spec.embedded and source is None:
        pytest.skip(f"no folder {spec.name} in the folder KDPIPE_DATA (../shared/data)")
    out = tmp_path_factory.mktemp("data") / spec.folder
    prepare(spec, source, out)
    return spec, out


@pytest.fixture(scope="module")
def prepared(made: tuple[DatasetSpec, Path]) -> Prepared:
    return load(made[1], verify=True)


@pytest.mark.parametrize("spec", SPECS, **named)
def test_declaration_is_complete(spec: DatasetSpec) -> None:
    assert spec.sizes.keys() == {"train", "test"}
    assert spec.num_classes is not None
    assert spec.num_classes > 1
    assert spec.shape[0] in (1, 3)
    assert spec.targets is None or len(spec.targets) == spec.num_classes
    assert spec.licence
    assert spec.layout
    assert spec.paper.url
    assert (spec.mean is None) == (spec.std is None)
    if spec.mean is not None and spec.std is not None:
        assert len(spec.mean) == len(spec.std) == spec.shape[0]
        assert spec.stats_source != DatasetSpec.stats_source


@pytest.mark.parametrize("spec", FROM_FILES, **named)
def test_a_missing_folder_says_what_to_put_there(spec: DatasetSpec, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fix:"):
        prepare(spec, tmp_path / "nothing", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_as_declared(made: tuple[DatasetSpec, Path], prepared: Prepared) -> None:
    spec, _ = made
    assert (prepared.name, prepared.num_classes, prepared.shape) == (spec.name, spec.num_classes, spec.shape)
    channels, height, width = spec.shape
    for split, size in spec.sizes.items():
        found = getattr(prepared, split)
        if isinstance(found.images, ImageFiles):
            assert (len(found.images), found.images.side) == (size, height)
        else:
            assert (found.images.shape, found.images.dtype) == ((size, height, width, channels), np.uint8)
        assert (found.labels.shape, found.labels.dtype) == ((size,), np.int64)


def test_pixels_are_the_known_ones(made: tuple[DatasetSpec, Path]) -> None:
    spec, out = made
    meta = json.loads((out / "meta.json").read_text())
    if spec.name not in PIXELS:
        pytest.skip(f"the pixels of {spec.name} have no recorded hash")
    assert meta["pixels"] == PIXELS[spec.name]
    assert meta["source"]


def test_classes_are_balanced(made: tuple[DatasetSpec, Path], prepared: Prepared) -> None:
    spec, _ = made
    for split, size in spec.sizes.items():
        counts = np.bincount(getattr(prepared, split).labels, minlength=spec.num_classes)
        assert len(counts) == spec.num_classes
        assert counts.min() >= 0.9 * size / spec.num_classes
        assert counts.max() <= 1.1 * size / spec.num_classes


def test_statistics_are_those_of_the_training_pixels(prepared: Prepared) -> None:
    mean, std = channel_statistics(prepared.train.images)
    assert prepared.mean == pytest.approx(mean, abs=3e-4)
    assert prepared.std == pytest.approx(std, abs=3e-4)


def test_splits_share_few_images(prepared: Prepared) -> None:
    """An image in both splits is a leak; CIFAR-100 as published has ten such images, 0.1 % of its tests."""
    if isinstance(prepared.train.images, ImageFiles):
        pytest.skip("too many files to compare")
    train, test = ({image.tobytes() for image in split.images} for split in (prepared.train, prepared.test))
    assert len(train & test) <= 0.002 * len(test)
    assert len(train) >= 0.99 * len(prepared.train.labels)


@pytest.mark.parametrize("spec", [*SPECS, *PROBLEMS], **named)
def test_the_card_says_what_it_is_and_where_it_comes_from(spec: DatasetSpec | RegressionSpec) -> None:
    text = card(spec.name, Path("config"))
    assert one_line(spec) in text
    assert spec.licence in text
    assert spec.paper.title in text
    assert spec.paper.url
    assert spec.revision >= 1


@pytest.mark.parametrize("spec", PROBLEMS, **named)
def test_a_problem_is_a_function_of_its_seed(spec: RegressionSpec) -> None:
    one, again, other = spec.draw(3), spec.draw(3), spec.draw(4)
    assert one.x.shape[0] == len(one.y) == len(one.clean) == spec.samples
    assert np.array_equal(one.y, again.y)
    assert not np.array_equal(one.y, other.y)
    assert np.array_equal(one.clean, other.clean)
    assert all(source for _, source in spec.settings.values())
