"""Each augmentation against torchvision or Pillow on single images, and what all of them promise."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from kdpipe.core.errors import ConfigError
from kdpipe.core.specs import Augmentation
from kdpipe.engine.augment import AUGMENTATIONS, Cutout, Pipeline, ResizedCrop, Rotation
from kdpipe.engine.augment_policies import (
    _RANDAUGMENT,
    COLOURS,
    GEOMETRIC,
    TONES,
    AugMix,
    RandAugment,
    _magnitude,
    _operate,
)
from kdpipe.engine.streams import generator

NOTHING = {  # settings under which an augmentation leaves every image as it is
    "crop": None,  # it always moves; see `test_crop_equals_padding_and_slicing`
    "flip": {"p": 0},
    "resized_crop": {"scale": [1, 1], "ratio": [1, 1]},
    "rotation": {"degrees": 0},
    "cutout": {"size": 0},
    "randaugment": {"n": 0},
    "augmix": None,  # see `test_augmix_with_all_weight_on_the_image_is_the_image`
}


def images(n=6, side=12, channels=3):
    """Smooth pictures (noise has no neighbours that are alike, so interpolation would differ wildly)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    waves = rng.uniform(0, 6, (n, channels, 2))
    planes = [[np.sin(a * x + b * y + i) for a, b in picture] for i, picture in enumerate(waves)]
    return torch.tensor((127 + 120 * np.array(planes)).astype(np.uint8)).permute(0, 2, 3, 1).contiguous()


def planes(batch):
    return batch.permute(0, 3, 1, 2)


@pytest.fixture(params=sorted(AUGMENTATIONS))
def name(request):
    return request.param


def pipeline(*names, **settings):
    return Pipeline(tuple(Augmentation(name=n, settings=settings) for n in names))


# what all of them promise


@pytest.mark.parametrize("channels", [1, 3])
def test_form_and_range_stay(name, channels):
    batch = images(channels=channels)
    steps = pipeline(name)
    before = batch.clone()
    out = steps.apply(batch, steps.draw(6, generator(0, "a")), torch.arange(6))
    assert (out.shape, out.dtype) == (batch.shape, torch.uint8)
    assert torch.equal(batch, before)  # the data themselves are never written to


def test_draws_are_a_function_of_seed_stream_and_epoch(name):
    steps = pipeline(name)
    one, again = (steps.draw(50, generator(1, "a", 2))[0] for _ in range(2))
    assert torch.equal(one, again)
    for other in (generator(2, "a", 2), generator(1, "b", 2), generator(1, "a", 3)):
        assert not torch.equal(one, steps.draw(50, other)[0])


def test_an_image_is_its_own_whatever_batch_it_is_in(name):
    batch = images()
    steps = pipeline(name)
    drawn = steps.draw(6, generator(0, "a"))
    whole = steps.apply(batch, drawn, torch.arange(6))
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    assert torch.equal(steps.apply(batch[order], drawn, order), whole[order])
    for i in range(6):
        assert torch.equal(steps.apply(batch[i : i + 1], drawn, torch.tensor([i]))[0], whole[i])


def test_it_changes_something(name):
    batch = images()
    steps = pipeline(name)
    out = steps.apply(batch, steps.draw(6, generator(3, "a")), torch.arange(6))
    assert not torch.equal(out, batch)


def test_at_zero_magnitude_nothing_changes(name):
    if NOTHING[name] is None:
        pytest.skip("it has no such settings")
    batch = images()
    steps = pipeline(name, **NOTHING[name])
    assert torch.equal(steps.apply(batch, steps.draw(6, generator(0, "a")), torch.arange(6)), batch)


def test_steps_follow_each_other_in_order():
    batch = images()
    both = Pipeline((Augmentation(name="flip", settings={"p": 1}), Augmentation(name="rotation")))
    drawn = both.draw(6, generator(0, "a"))
    expected = both.steps[1].apply(batch.flip(2), drawn[1])
    assert torch.equal(both.apply(batch, drawn, torch.arange(6)), expected)


@pytest.mark.parametrize(
    ("name", "settings", "key"),
    [
        ("rotation", {"degrees": -1}, "degrees"),
        ("cutout", {"size": -2}, "size"),
        ("cutout", {"fill": 256}, "fill"),
        ("randaugment", {"m": 31}, "m"),
        ("augmix", {"severity": 0}, "severity"),
        ("augmix", {"alpha": 0}, "alpha"),
        ("resized_crop", {"scale": [0.5, 0.2]}, "scale"),
        ("resized_crop", {"ratio": [0, 1]}, "ratio"),
    ],
)
def test_a_wrong_setting_is_named(name, settings, key):
    with pytest.raises(ConfigError, match=f"augmentation '{name}', setting '{key}"):
        pipeline(name, **settings)


def test_what_needs_no_torchvision_does_not_import_it():
    program = (
        "import sys, torch\nfrom kdpipe.core.specs import Augmentation\n"
        "from kdpipe.engine.augment import Pipeline\n"
        "p = Pipeline(tuple(Augmentation(name=n) for n in ('crop', 'flip', 'rotation', 'cutout')))\n"
        "p.apply(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), p.draw(2, torch.Generator()), torch.arange(2))\n"
        "print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# rotation


@pytest.mark.parametrize("side", [8, 13])
def test_rotation_equals_torchvisions(side):
    from torchvision.transforms.v2 import functional as F

    batch = images(side=side)
    angles = torch.tensor([-20.0, -7.3, 0.0, 3.1, 12.9, 20.0])
    out = Rotation().apply(batch, angles)
    expected = [F.rotate(p, a) for p, a in zip(planes(batch), angles.tolist(), strict=True)]
    same = (planes(out) == torch.stack(expected)).float().mean()
    assert same > 0.995  # a source that lies between two pixels may fall to either


def test_rotation_of_images_that_are_not_square():
    from torchvision.transforms.v2 import functional as F

    batch = images(side=12)[:, :, :7].contiguous()
    out = Rotation().apply(batch, torch.full((6,), 15.0))
    assert (planes(out) == F.rotate(planes(batch), 15.0)).float().mean() > 0.995


def test_angles_fill_their_range_and_stay_in_it():
    angle = Rotation(degrees=20).draw(5000, generator(0, "r"))
    assert angle.abs().max() <= 20
    assert angle.min() < -19
    assert angle.max() > 19
    assert abs(angle.mean()) < 1


# cutout


def test_cutout_covers_a_clipped_square():
    batch = images(3, side=10)
    centre = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.99, 0.3]])
    out = Cutout(size=4, fill=200).apply(batch, centre)
    for image, got, (row, column) in zip(batch, out, [(5, 5), (0, 0), (9, 3)], strict=True):
        expected = image.clone()
        expected[max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = 200
        assert torch.equal(got, expected)


def test_cutout_reaches_every_place():
    out = Cutout(size=1, fill=255).apply(
        torch.zeros(2000, 4, 4, 1, dtype=torch.uint8), Cutout().draw(2000, generator(0, "c"))
    )
    assert (out.sum((1, 2, 3)) == 255).all()
    assert ((out > 0).float().mean(0) > 0.03).all()


# resized crop


def test_a_resized_crop_is_the_box_resized():
    batch = images(2, side=16)
    crop = ResizedCrop()
    tries = crop.draw(2, generator(5, "c"))
    out = crop.apply(batch, tries, side=8)
    assert out.shape == (2, 8, 8, 3)
    for image, got, numbers in zip(batch, out, tries.tolist(), strict=True):
        top, left, h, w = crop.box(16, 16, numbers)
        picture = Image.fromarray(image.numpy()).crop((left, top, left + w, top + h))
        expected = np.asarray(picture.resize((8, 8), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(got.numpy().astype(int) - expected).max() <= 1


def test_boxes_keep_to_area_shape_and_image():
    crop = ResizedCrop(scale=(0.25, 0.5), ratio=(0.5, 2))
    boxes = [crop.box(600, 900, t) for t in crop.draw(2000, generator(0, "c")).tolist()]
    top, left, h, w = np.array(boxes).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= 600).all()
    assert (left + w <= 900).all()
    share, ratio = h * w / 540_000, w / h
    assert (share > 0.24).all()
    assert (share < 0.51).all()
    assert (ratio > 0.48).all()
    assert (ratio < 2.1).all()
    assert share.min() < 0.26 < 0.49 < share.max()
    assert ratio.min() < 0.52 < 1.95 < ratio.max()


def test_where_no_try_fits_the_middle_is_taken():
    crop = ResizedCrop(scale=(1, 1), ratio=(0.75, 4 / 3))
    tries = [[0.5, 0.5, 0.5, 0.5]] * 10  # the whole area as a square: fits neither image
    assert crop.box(30, 100, tries) == (0, 30, 30, 40)
    assert crop.box(100, 30, tries) == (30, 0, 40, 30)


# policies


@pytest.mark.parametrize("operation", [*GEOMETRIC, *COLOURS, *TONES])
@pytest.mark.parametrize("policy", ["RandAugment", "AugMix"])
@pytest.mark.parametrize("sign", [0, 1])
def test_operations_and_magnitudes_are_torchvisions(operation, policy, sign):
    from torchvision.transforms import v2

    title = {"autocontrast": "AutoContrast"}.get(operation, operation.title().replace("_", ""))
    their = getattr(v2, policy)(interpolation=v2.InterpolationMode.NEAREST)
    magnitudes, signed = their._AUGMENTATION_SPACE[title]
    bins, level = (31, 9) if policy == "RandAugment" else (10, 2)
    table = magnitudes(bins, 12, 12)
    theirs = 0.0 if table is None else float(table[level]) * (-1 if signed and sign else 1)
    batch = planes(images())
    expected = [
        their._apply_image_or_video_transform(
            image, title, theirs, interpolation=v2.InterpolationMode.NEAREST, fill=their._fill
        )
        for image in batch
    ]
    reach = {"translate_x": 4.0, "translate_y": 4.0, "posterize": 4}
    if policy == "RandAugment":
        reach = {"translate_x": 150 / 331 * 12, "translate_y": 150 / 331 * 12, "posterize": 8}
    ours = _operate(batch, operation, _magnitude(operation, level / (bins - 1), reach, sign), "nearest")
    difference = (ours.int() - torch.stack(expected).int()).abs()
    assert difference.max() <= 1  # their magnitude is a float32, ours a float64
    assert (difference == 0).float().mean() > 0.9


def test_randaugment_is_one_operation_after_another():
    batch = images(1)
    posterize, solarize = 1 + _RANDAUGMENT.index("posterize"), 1 + _RANDAUGMENT.index("solarize")
    out = RandAugment(n=2, m=15).apply(batch, torch.tensor([[[posterize, 0], [solarize, 0]]]))
    step = planes(batch) & 0b11111100  # 8 - round(15 / 7.5) = 6 bits
    expected = torch.where(step >= 127.5, 255 - step, step)
    assert torch.equal(planes(out), expected)


def test_randaugment_draws_every_operation_and_identity():
    drawn = RandAugment(n=2).draw(2000, generator(0, "r"))
    assert drawn.shape == (2000, 2, 2)
    assert set(drawn[..., 0].flatten().tolist()) == set(range(14))
    assert set(drawn[..., 1].flatten().tolist()) == {0, 1}
    same = RandAugment(n=1).apply(images(), torch.zeros(6, 1, 2, dtype=torch.int64))
    assert torch.equal(same, images())


def test_augmix_with_all_weight_on_the_image_is_the_image():
    mix = AugMix()
    drawn = mix.draw(6, generator(0, "m"))
    drawn[:, 0] = 1
    assert torch.equal(mix.apply(images(), drawn), images())


def test_augmix_is_the_formula():
    mix = AugMix(width=2)
    shear, equalize = mix._operations.index("shear_x"), mix._operations.index("equalize")
    unused = [0.0] * 3
    chains = [0.25, 1, shear, 2, 1, *unused, *unused], [0.75, 2, equalize, 0, 0, shear, 0, 0, *unused]
    drawn = torch.tensor([[0.4, *chains[0], *chains[1]]], dtype=torch.float64)
    batch = images(1)
    one = _operate(planes(batch), "shear_x", -0.3 * 2 / 9, "bilinear")
    two = _operate(_operate(planes(batch), "equalize", 0, "bilinear"), "shear_x", 0.0, "bilinear")
    expected = 0.4 * planes(batch) + 0.6 * (0.25 * one + 0.75 * two)
    assert (planes(mix.apply(batch, drawn)).float() - expected).abs().max() <= 0.51


def test_augmix_draws_are_in_their_ranges():
    mix = AugMix(severity=3, width=3)
    drawn = mix.draw(3000, generator(0, "m"))
    assert drawn.shape == (3000, 34)
    chains = drawn[:, 1:].reshape(3000, 3, 11)
    assert ((drawn[:, 0] >= 0) & (drawn[:, 0] <= 1)).all()
    assert drawn[:, 0].mean() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(chains[..., 0].sum(1), torch.ones(3000, dtype=torch.float64))
    assert set(chains[..., 1].flatten().tolist()) == {1, 2, 3}
    assert set(chains[..., 2].flatten().tolist()) == set(range(9))
    assert set(chains[..., 3].flatten().tolist()) == {0, 1, 2}
    assert len(AugMix(all_ops=True)._operations) == 13
