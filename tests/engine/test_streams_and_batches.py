"""Order and augmentation are functions of (seed, stream, epoch) alone."""

import numpy as np
import pytest
import torch

from kdpipe.api import Split
from kdpipe.core.errors import ConfigError, UnknownNameError
from kdpipe.core.specs import Augmentation, Protocol
from kdpipe.engine.augment import Crop, Flip, Pipeline
from kdpipe.engine.batches import Batches, Normalise, unit_norm
from kdpipe.engine.streams import generator, seeded, stream_seed

CPU = torch.device("cpu")


def split(n=10, size=6, channels=3):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    return Split(images, np.arange(n, dtype=np.int64) % 5)


def batches(n=10, seed=0, batch_size=4, steps=("crop", "flip"), **options):
    protocol = Protocol(
        lr=0.1, epochs=1, batch_size=batch_size, augmentation=tuple(Augmentation(name=s) for s in steps)
    )
    normalise = Normalise((0.5,) * 3, (0.25,) * 3, CPU)
    return Batches(split(n), normalise, protocol, seed, CPU, **options)


def test_streams_are_independent_and_repeatable():
    seeds = {stream_seed(s, name, e) for s in (0, 1) for name in ("order", "init") for e in (0, 1)}
    assert len(seeds) == 8
    assert torch.equal(
        torch.rand(3, generator=generator(1, "a", 2)), torch.rand(3, generator=generator(1, "a", 2))
    )


def test_seeded_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    with seeded(0, "init"):
        first = torch.rand(2)
    with seeded(0, "init"):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_deals_every_sample_once():
    index = torch.cat([b.index for b in batches().epoch(0)])
    assert sorted(index.tolist()) == list(range(10))


def test_epochs_differ_and_repeat():
    data = batches()
    first, again, second = (torch.cat([b.images for b in data.epoch(e)]) for e in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_starting_in_the_middle_gives_the_rest():
    data = batches()
    whole, rest = list(data.epoch(3)), list(data.epoch(3, start=1))
    assert len(rest) == len(whole) - 1
    for a, b in zip(whole[1:], rest, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.index, b.index)


def test_what_a_sample_looks_like_does_not_depend_on_the_batch_size():
    def looks(batch_size):
        parts = list(batches(batch_size=batch_size).epoch(2))
        images, index = torch.cat([b.images for b in parts]), torch.cat([b.index for b in parts])
        return images[index.argsort()]

    assert torch.equal(looks(3), looks(7))


@pytest.mark.parametrize(("n", "sizes"), [(8, [4, 4]), (10, [4, 4, 2]), (9, [4, 5]), (3, [3])])
def test_no_batch_holds_a_single_sample(n, sizes):
    data = batches(n=n)
    assert [len(b.labels) for b in data.epoch(0)] == sizes
    assert data.steps == len(sizes)


def test_labels_belong_to_their_images():
    data = batches(steps=())
    normalise = Normalise((0.5,) * 3, (0.25,) * 3, CPU)
    originals = normalise(torch.tensor(split().images))
    for batch in data.epoch(0):
        assert torch.equal(batch.images, originals[batch.index])
        assert torch.equal(batch.labels, torch.tensor(split().labels)[batch.index])


def test_normalise_is_the_formula():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    out = Normalise((0.1, 0.2, 0.3), (0.5, 1.0, 2.0), CPU)(images)
    expected = [(0 - 0.1) / 0.5, (0.2 - 0.2) / 1.0, (1.0 - 0.3) / 2.0]
    torch.testing.assert_close(out.flatten(), torch.tensor(expected))
    assert out.shape == (1, 3, 1, 1)


def test_unit_norm_divides_by_the_norm_and_keeps_black():
    images = torch.tensor(split(3).images)
    images[1] = 0
    out = unit_norm(images)
    assert out.shape == (3, 3, 6, 6)
    torch.testing.assert_close(out.flatten(1).norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    expected = images[2].float().permute(2, 0, 1) / images[2].float().norm()
    torch.testing.assert_close(out[2], expected)


def test_further_views_are_there_when_asked_for_and_independent():
    assert next(batches().epoch(0)).views == ()
    plain, both = list(batches(n=64).epoch(0)), list(batches(n=64, further=[(), ()]).epoch(0))
    assert all(torch.equal(a.images, b.images) for a, b in zip(plain, both, strict=True))
    assert not all(torch.equal(b.images, b.views[0]) for b in both)
    assert not all(torch.equal(b.views[1], b.views[0]) for b in both)
    flip = (Augmentation(name="flip", settings={"p": 1}),)
    for batch in batches(steps=(), further=[flip]).epoch(0):
        assert torch.equal(batch.views[0], batch.images.flip(3))


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_crop_equals_padding_and_slicing(mode):
    images = torch.tensor(split(4).images)
    crop = Crop(padding=2, mode=mode)
    corner = torch.tensor([[0, 0], [4, 4], [2, 2], [1, 3]])
    kind = {"zero": "constant", "reflect": "reflect"}[mode]
    for image, (row, column), got in zip(
        images.numpy(), corner.tolist(), crop.apply(images, corner), strict=True
    ):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode=kind)
        assert np.array_equal(got.numpy(), padded[row : row + 6, column : column + 6])


def test_crop_reaches_every_corner():
    drawn = Crop(padding=1).draw(500, generator(0, "x"))
    assert {tuple(c) for c in drawn.tolist()} == {(r, c) for r in range(3) for c in range(3)}


def test_flip_mirrors_the_chosen():
    images = torch.arange(12).reshape(2, 2, 3, 1)
    out = Flip().apply(images, torch.tensor([True, False]))
    assert out[0, 0, :, 0].tolist() == [2, 1, 0]
    assert torch.equal(out[1], images[1])
    assert 400 < int(Flip().draw(1000, generator(0, "f")).sum()) < 600


def test_wrong_augmentations_are_one_message():
    with pytest.raises(UnknownNameError, match="did you mean 'crop'"):
        Pipeline((Augmentation(name="corp"),))
    with pytest.raises(ConfigError, match="setting 'padding'"):
        Pipeline((Augmentation(name="crop", settings={"padding": 0}),))
    with pytest.raises(ConfigError, match="setting 'pading'"):
        Pipeline((Augmentation(name="crop", settings={"pading": 2}),))


def test_a_single_image_is_refused():
    with pytest.raises(ConfigError, match="need two"):
        batches(n=1)
    assert [len(b.labels) for b in batches(n=2).epoch(0)] == [2]
