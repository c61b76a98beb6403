"""Images that stay in their files: views, worker processes, errors."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from kdpipe.api import ImageFiles, Split
from kdpipe.core.errors import DataError
from kdpipe.core.specs import Augmentation, Protocol
from kdpipe.engine.batches import Batches, Normalise, in_order
from kdpipe.engine.ondisk import centre, evaluation_views, sample_of, training_views, whole

CPU = torch.device("cpu")
SIZES = [(40, 30), (24, 24), (33, 50), (28, 60), (20, 20), (64, 48), (31, 27)]


def picture(number, width, height):
    """A smooth picture with a corner of its own colour."""
    y, x = np.mgrid[:height, :width]
    values = np.stack([x * 255 / width, y * 255 / height, np.full_like(x, 30 * number, float)], axis=-1)
    return Image.fromarray(values.astype(np.uint8))


@pytest.fixture
def files(tmp_path):
    names = []
    for number, (width, height) in enumerate(SIZES):
        names.append(f"class/image {number} ü.png")
        path = tmp_path / names[-1]
        path.parent.mkdir(exist_ok=True)
        picture(number, width, height).save(path)
    return ImageFiles(tmp_path, np.array([os.fsencode(n) for n in names]), side=16)


def batches(files, steps=("resized_crop", "flip"), workers=0, size=3, **options):
    protocol = Protocol(
        lr=0.1, epochs=1, batch_size=size, augmentation=tuple(Augmentation(name=s) for s in steps)
    )
    split = Split(files, np.arange(len(files)))
    return Batches(
        split, Normalise((0.5,) * 3, (0.25,) * 3, CPU), protocol, 7, CPU, workers=workers, **options
    )


def test_an_image_is_read_whole(files):
    assert torch.equal(whole(files, 2), torch.tensor(np.asarray(picture(2, *SIZES[2]))))


@pytest.mark.parametrize("number", [0, 1, 3])
def test_the_evaluation_view_is_pillows(files, number):
    image = picture(number, *SIZES[number])
    short = round(16 * 256 / 224)
    width, height = (max(short, int(short * s / min(image.size))) for s in image.size)
    left, top = round((width - 16) / 2), round((height - 16) / 2)
    expected = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 16, top + 16))
    got = centre(whole(files, number), 16)
    assert np.abs(got.numpy().astype(int) - np.asarray(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order(files, workers):
    views = list(evaluation_views(files, 3, workers, CPU))
    assert [len(v) for v in views] == [3, 3, 1]
    expected = torch.stack([centre(whole(files, i), 16) for i in range(7)])
    assert torch.equal(torch.cat(views), expected)
    assert torch.equal(torch.cat(list(in_order(files, 4, CPU))), expected)


@pytest.mark.parametrize("steps", [(), ("flip",), ("resized_crop", "flip"), ("crop", "randaugment")])
def test_neither_workers_nor_batches_change_what_a_sample_looks_like(files, steps):
    def looks(**options):
        parts = list(batches(files, steps, **options).epoch(4))
        images, index = torch.cat([b.images for b in parts]), torch.cat([b.index for b in parts])
        return images[index.argsort()]

    one = looks(workers=0)
    assert one.shape == (7, 3, 16, 16)
    assert torch.equal(one, looks(workers=2))
    assert torch.equal(one, looks(workers=1, size=5))


def test_epochs_and_views_differ_and_repeat(files):
    data = batches(files, further=[()])
    first, again, other = (list(data.epoch(e)) for e in (0, 0, 1))
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a.views[0], b.views[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].images, first[0].views[0])
    assert not torch.equal(first[0].images, other[0].images)


def test_starting_in_the_middle_gives_the_rest(files):
    data = batches(files)
    whole_epoch, rest = list(data.epoch(2)), list(data.epoch(2, start=1))
    assert torch.equal(whole_epoch[1].images, rest[0].images)
    assert torch.equal(whole_epoch[1].labels, rest[0].labels)


def test_the_global_random_state_is_left_alone(files):
    before = torch.get_rng_state()
    list(batches(files, workers=1).epoch(0))
    list(evaluation_views(files, 3, 0, CPU))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("harm", ["truncated", "missing", "text"])
def test_a_broken_image_is_one_error_that_names_it(files, harm, workers):
    path = files.path(5)
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60] if harm == "truncated" else b"no image")
    with pytest.raises(DataError, match=r"(?s)cannot be decoded.*image 5") as caught:
        list(batches(files, workers=workers).epoch(0))
    assert "Traceback" not in str(caught.value)
    with pytest.raises(DataError, match="image 5"):
        list(evaluation_views(files, 3, workers, CPU))


def test_a_grey_image_and_one_with_transparency_become_colour(files):
    picture(0, 20, 20).convert("L").save(files.path(0))
    picture(1, 20, 20).convert("RGBA").save(files.path(1))
    assert whole(files, 0).shape == whole(files, 1).shape == (20, 20, 3)


def test_a_sample_is_evenly_spaced(files):
    expected = torch.stack([centre(whole(files, i), 16) for i in (0, 3, 6)])
    assert np.array_equal(np.concatenate(list(sample_of(files, 3))), expected.numpy())
    assert len(np.concatenate(list(sample_of(files, 100)))) == 7


def test_rows_of_files_are_files(files):
    assert [p.name for p in map(files[[3, 1]].path, range(2))] == ["image 3 ü.png", "image 1 ü.png"]
    parts = [torch.tensor([1, 0])]
    pipeline = batches(files).pipelines["augmentation"]
    views = next(training_views(files[[3, 1]], pipeline, 0, "augmentation", 0, parts, 0, CPU))
    assert views.shape == (2, 16, 16, 3)
