"""Mixup, cutmix and rotations are their formulas; their draws come from the caller's stream."""

from __future__ import annotations

import pytest
import torch

from kdpipe.nn.mixing import Mix, cutmix, draw_mix, four_rotations, mixup


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_partners_are_a_permutation_and_shares_follow_beta() -> None:
    shares = torch.tensor([draw_mix(5, 0.2, stream(s)).lam for s in range(500)])
    assert ((shares >= 0) & (shares <= 1)).all()
    assert shares.mean() == pytest.approx(0.5, abs=0.06)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.02)
    assert draw_mix(5, 1.0, stream(1)).partner.sort().values.tolist() == list(range(5))


def test_a_stream_gives_the_same_mix_and_moves_on() -> None:
    one, again = stream(), stream()
    first, same = draw_mix(8, 1.0, one), draw_mix(8, 1.0, again)
    assert torch.equal(first.partner, same.partner)
    assert first.lam == same.lam
    assert draw_mix(8, 1.0, one).lam != first.lam


def test_mixup_is_the_formula() -> None:
    x = torch.rand(4, 3, 5, 5)
    mix = Mix(torch.tensor([1, 0, 3, 3]), 0.3)
    torch.testing.assert_close(mixup(x, mix), 0.3 * x + 0.7 * x[mix.partner])
    torch.testing.assert_close(mixup(x, Mix(mix.partner, 1.0)), x)


@pytest.mark.parametrize(
    ("centre", "rows", "columns"),
    [((0.5, 0.5), (3, 7), (3, 7)), ((0.0, 0.99), (0, 2), (7, 10)), ((0.99, 0.0), (7, 10), (0, 2))],
)
def test_cutmix_pastes_a_clipped_box(centre, rows, columns) -> None:
    x = torch.arange(2.0)[:, None, None, None].expand(2, 3, 10, 10)
    out, mix = cutmix(x, Mix(torch.tensor([1, 0]), 0.84), centre)  # sqrt(0.16) of 10 pixels: 4
    expected = x.clone()
    box = (..., slice(*rows), slice(*columns))
    expected[box] = 1 - expected[box]
    assert torch.equal(out, expected)
    assert mix.lam == pytest.approx(1 - (rows[1] - rows[0]) * (columns[1] - columns[0]) / 100)
    assert mix.lam == pytest.approx(float((out[0] == 0).float().mean()))
    assert torch.equal(x[0], torch.zeros(3, 10, 10))


def test_cutmix_that_keeps_all_or_nothing() -> None:
    x = torch.rand(2, 1, 6, 6)
    partner = torch.tensor([1, 0])
    same, mix = cutmix(x, Mix(partner, 1.0), (0.5, 0.5))
    assert torch.equal(same, x)
    assert mix.lam == 1
    other, mix = cutmix(x, Mix(partner, 0.0), (0.5, 0.5))
    assert torch.equal(other, x[partner])
    assert mix.lam == 0


def test_four_rotations_are_quarter_turns_in_blocks() -> None:
    x = torch.arange(8.0).reshape(2, 1, 2, 2)
    out = four_rotations(x)
    assert out.shape == (8, 1, 2, 2)
    assert torch.equal(out[:2], x)
    assert out[2, 0].tolist() == [[1, 3], [0, 2]]
    assert out[4, 0].tolist() == [[3, 2], [1, 0]]
    assert torch.equal(torch.rot90(out[6:], 1, (-2, -1)), x)
