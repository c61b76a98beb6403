"""The benchmark's yardstick runs, learns, and leaves the teacher alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.reference import ReferenceLoop, kd_loss


def loop(n: int = 24, batch_size: int = 8) -> ReferenceLoop:
    torch.manual_seed(0)
    labels = np.arange(n) % 2
    images = np.zeros((n, 3, 8, 8), dtype=np.uint8) + (labels * 200).astype(np.uint8)[:, None, None, None]
    student = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    teacher = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    return ReferenceLoop(
        student, teacher, images, labels, mean=[0.5] * 3, std=[0.5] * 3, batch_size=batch_size, workers=0
    )


def test_it_steps_past_the_end_of_an_epoch_and_moves_only_the_student() -> None:
    reference = loop()
    student = {k: v.clone() for k, v in reference.student.state_dict().items()}
    teacher = {k: v.clone() for k, v in reference.teacher.state_dict().items()}
    assert reference.run(5) > 0
    assert len(reference.losses) == 5
    assert np.isfinite(reference.losses).all()
    assert any(not torch.equal(v, student[k]) for k, v in reference.student.state_dict().items())
    assert all(torch.equal(v, teacher[k]) for k, v in reference.teacher.state_dict().items())


def test_images_reach_the_network_cropped_and_normalised() -> None:
    image, label, index = loop().loader.dataset[1]
    assert image.shape == (3, 8, 8)
    assert (label, index) == (1, 1)
    assert image.max() == pytest.approx(200 / 255 / 0.5 - 1, abs=1e-5)


def test_kd_loss_is_the_divergence_at_temperature_four() -> None:
    student, teacher = np.array([[1.0, -2.0, 0.5]]), np.array([[0.0, 3.0, -1.0]])
    p, q = (np.exp(x / 4) / np.exp(x / 4).sum() for x in (student, teacher))
    expected = 16 * (q * np.log(q / p)).sum()
    assert kd_loss(torch.tensor(student), torch.tensor(teacher)).item() == pytest.approx(expected)


def test_fewer_images_than_a_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="less than one batch"):
        loop(n=4)


def test_an_epoch_has_every_full_batch_and_accuracy_is_of_images_as_they_are() -> None:
    """Dark and bright images, and a student that knows which are which."""
    reference = loop(n=26)
    reference.epoch()
    assert len(reference.losses) == 3
    with torch.no_grad():
        reference.student[2].weight.copy_(torch.tensor([[-1.0] * 3, [1.0] * 3]))
        reference.student[2].bias.zero_()
    labels = np.arange(10) % 2
    images = np.zeros((10, 3, 8, 8), dtype=np.uint8) + (labels * 200).astype(np.uint8)[:, None, None, None]
    assert reference.test(images, labels) == 1.0
    labels[0] = 1
    assert reference.test(images, labels) == 0.9
    assert reference.student.training
