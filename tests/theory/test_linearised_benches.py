"""The benches of the linearised dynamics: tables, figures, and verdicts that come out either way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdpipe.api import Bench, Finding, Images
from kdpipe.benches.distillation_error import DistillationError
from kdpipe.benches.linearised_dynamics import LinearisedDynamics
from kdpipe.core.errors import ConfigError, DataError

SMALL_DYNAMICS = {
    "images": 4, "widths": (6, 12, 24), "weights": (0.0, 0.1, 1.0), "time": 40.0, "units": 6, "labellings": 5,
    "teacher_time": 1.0,
}  # fmt: skip
SMALL_ERROR = {
    "images": 4, "teacher": 20, "shares": (0.2, 0.5, 0.8), "weights": (0.0, 0.1, 1.0), "student": 5,
    "middle": 10, "time": 300.0, "draws": 12, "trained": 1, "spread": 0.3,
}  # fmt: skip


class Memory:
    """A desk that keeps finished parts, and can be told to allow no new ones."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, np.ndarray]] = {}
        self.told: list[float] = []
        self.closed = False

    def once(self, name: str, make: Callable[[], Any]) -> dict[str, np.ndarray]:
        if name not in self.kept:
            assert not self.closed, f"{name} made again"
            made = {key: np.asarray(value) for key, value in make().items()}
            assert all(value.dtype == np.float64 for value in made.values())
            self.kept[name] = made
        return self.kept[name]

    def tell(self, done: float, what: str) -> None:
        assert what
        self.told.append(done)


def images(n: int = 40, d: int = 12) -> Images:
    rng = np.random.default_rng(5)
    pixels, labels = rng.random((n, d)), np.arange(n) % 3
    return Images("noise", pixels, labels, pixels, labels)


def run(bench: Bench, label: str = "smooth", seeds: Sequence[int] = (0, 1)) -> list[Finding]:
    return [Finding(label, seed, bench, bench.run(seed, images(), Memory()), "noise") for seed in seeds]


@pytest.fixture(scope="module")
def dynamics() -> list[Finding]:
    relu = LinearisedDynamics.Config(**SMALL_DYNAMICS, activation="relu", spread=1.0)
    return run(LinearisedDynamics(LinearisedDynamics.Config(**SMALL_DYNAMICS))) + run(
        LinearisedDynamics(relu), "ReLU"
    )


@pytest.fixture(scope="module")
def errors() -> list[Finding]:
    relu = DistillationError.Config(**SMALL_ERROR, activation="relu")
    return run(DistillationError(DistillationError.Config(**SMALL_ERROR))) + run(
        DistillationError(relu), "ReLU"
    )


@pytest.mark.parametrize("made", ["dynamics", "errors"])
def test_a_killed_run_goes_on_and_gives_the_same(made: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(made)
    desk = Memory()
    tables = found[0].bench.run(0, images(), desk)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, found[0].tables[name])
        assert not table.equals(found[1].tables[name])
    assert desk.told == sorted(desk.told)
    assert desk.told[-1] == 1
    last = list(desk.kept)[-1]
    del desk.kept[last]
    again = found[0].bench.run(0, images(), desk)
    desk.closed = True
    for name, table in found[0].bench.run(0, images(), desk).items():
        pd.testing.assert_frame_equal(table, tables[name])
        pd.testing.assert_frame_equal(again[name], tables[name])


@pytest.mark.parametrize("made", ["dynamics", "errors"])
def test_figures(made: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(made)
    bench = found[0].bench
    for name in bench.plots:
        plot = bench.draw(name, found)
        assert plot.name == name
        assert "2 seed(s)" in plot.caption
        assert {panel.title.split(":")[0].split(",")[0] for panel in plot.panels} == {"smooth", "ReLU"}
        for panel in plot.panels:
            assert panel.xlabel
            assert panel.ylabel
            for line in panel.lines:
                assert len(line.x), (name, line.label)
                assert np.isfinite(line.y).all(), (name, line.label)
                assert panel.xscale == "linear" or (line.x > 0).all()
                assert panel.yscale == "linear" or (line.y > 0).all(), (name, panel.title, line.label)
        assert plot.title == bench.plots[name]
        for verdict in bench.verdicts(name, found):
            assert verdict.setting in ("smooth", "ReLU")
            assert "2 seeds" in verdict.numbers or "of 2" in verdict.numbers


def test_dynamics_tables(dynamics: list[Finding]) -> None:
    smooth, relu = dynamics[0].tables, dynamics[2].tables
    assert len(smooth["width"]) == 9
    assert (smooth["width"]["null"] == 0).all()
    assert (relu["width"]["null"] > 0.1).all()
    assert smooth["width"]["apart"].max() < 1e-8
    assert relu["width"].query("weight == 1")["apart"].min() > 0.01
    first = smooth["loss"].groupby(["units", "weight"]).first()
    np.testing.assert_allclose(first["trained"], first["linear"])  # both start at the same network
    counts = smooth["poles"].groupby("weight").size()
    assert counts.to_dict() == {0.0: 4, 0.1: 24, 1.0: 24}
    assert (smooth["overlap"]["slow"].between(0, 1 + 1e-9)).all()
    assert smooth["overlap"]["tenth"].max() > 0


def test_error_tables(errors: list[Finding]) -> None:
    smooth, relu = errors[0].tables["error"], errors[2].tables["error"]
    factor = (smooth["weight"] / (1 + smooth["weight"])) ** 2
    np.testing.assert_allclose(smooth["theorem"], factor * smooth["start"], atol=1e-12)
    np.testing.assert_allclose(smooth["limit"], smooth["theorem"], atol=1e-8)
    trained = smooth.dropna()
    assert len(trained) == len(smooth) / 12
    np.testing.assert_allclose(trained["trained"], trained["limit"], rtol=0.2, atol=1e-4)
    at_one = trained[trained["weight"] == 1]
    np.testing.assert_allclose(at_one["trained"], at_one["limit"], rtol=0.01)
    active = relu[relu["weight"] == 1]
    assert (active["limit"] >= active["theorem"] * (1 - 1e-9)).all()
    assert active["limit"].sum() > 1.1 * active["theorem"].sum()
    assert (smooth["teacher_error"] < 1e-2).all()
    # The mean over choices is the variance of drawing without replacement.
    means = smooth.groupby("units")[["start", "expected", "expected_proof"]].mean()
    assert (means["expected_proof"] >= means["expected"] * 19 / 20).all()
    ratio = means["start"] / means["expected"]
    assert ratio.between(0.4, 2.0).all(), ratio


def test_two_stages_of_exact_copies_would_be_one(errors: list[Finding]) -> None:
    """At large lambda the intermediate network stays its teacher, and two choices are as good as one."""
    config = DistillationError.Config(**{**SMALL_ERROR, "weights": (0.1, 1e5), "draws": 3})
    tables = DistillationError(config).run(0, images(), Memory())
    last = tables["stages"].query("weight == 1e5")
    np.testing.assert_allclose(last["two_stage"], last["direct"], rtol=1e-3)
    first = tables["stages"].query("weight == 0.1")
    assert (np.abs(first["two_stage"] / first["direct"] - 1) > 0.02).any()


def faked(
    found: list[Finding], table: str, change: Callable[[pd.DataFrame, int], pd.DataFrame]
) -> list[Finding]:
    """The findings of the first variant over five seeds, with one table changed."""
    base = found[0]
    return [
        Finding(base.label, seed, base.bench, {**base.tables, table: change(base.tables[table].copy(), seed)})
        for seed in range(5)
    ]


def says(bench: Bench, name: str, found: list[Finding], claim: str) -> str:
    (verdict,) = [each for each in bench.verdicts(name, found) if claim in each.claim]
    return verdict.verdict


@pytest.mark.parametrize(("slope", "noise", "verdict"), [
    (-0.55, 0.01, "holds"), (-1.0, 0.01, "holds"), (-0.1, 0.01, "fails"), (-0.5, 2.0, "undecided"),
])  # fmt: skip
def test_verdict_on_the_width(dynamics: list[Finding], slope: float, noise: float, verdict: str) -> None:
    def change(table: pd.DataFrame, seed: int) -> pd.DataFrame:
        shake = np.random.default_rng(seed).normal(0, noise, len(table))
        return table.assign(relative=table["units"] ** slope * np.exp(shake))

    found = faked(dynamics, "width", change)
    assert says(found[0].bench, "width", found, "falls at least") == verdict
    assert says(found[0].bench, "width", found[:1], "falls at least") == "undecided"


@pytest.mark.parametrize(("away", "left", "verdict"), [
    (0.01, 0.0, "holds"), (0.3, 0.01, "fails"), (0.3, 0.29, "undecided"),
])  # fmt: skip
def test_verdict_on_the_end(dynamics: list[Finding], away: float, left: float, verdict: str) -> None:
    found = faked(dynamics, "width", lambda table, seed: table.assign(to_theorem=away, left=left))
    assert says(found[0].bench, "width", found, "f_inf") == verdict


def test_verdicts_on_poles_speed_and_overlap(dynamics: list[Finding]) -> None:
    bench = dynamics[0].bench
    assert says(bench, "poles", dynamics[:2], "shifts the poles") == "holds"
    fallen = faked(dynamics, "poles", lambda t, seed: t.assign(pole=t["pole"] / (1 + 1e4 * t["weight"])))
    assert says(bench, "poles", fallen, "shifts the poles") == "fails"
    for power, verdict in ((-1, "holds"), (1, "fails")):
        timed = faked(
            dynamics, "width", lambda t, seed, power=power: t.assign(tenth=(1 + t["weight"]) ** power)
        )
        assert says(bench, "poles", timed, "faster") == verdict
    mixed = faked(dynamics, "width", lambda t, seed: t.assign(tenth=1 + (-1) ** seed * 0.1 * t["weight"]))
    assert says(bench, "poles", mixed, "faster") == "undecided"
    for sign, verdict in ((1, "holds"), (-1, "fails")):
        bent = faked(dynamics, "overlap", lambda t, seed, sign=sign: t.assign(tenth=10 + sign * t["slow"]))
        assert says(bench, "overlap", bent, "overlap") == verdict
    flat = faked(dynamics, "overlap", lambda t, seed: t.assign(tenth=1.0))
    assert says(bench, "overlap", flat, "overlap") == "undecided"


@pytest.mark.parametrize(("slope", "verdict"), [(1.0, "holds"), (1.6, "fails"), (0.5, "fails")])
def test_verdict_on_the_size(errors: list[Finding], slope: float, verdict: str) -> None:
    def change(table: pd.DataFrame, seed: int) -> pd.DataFrame:
        return table.assign(limit=(1 + 0.01 * seed) * table["missing"] ** slope)

    found = faked(errors, "error", change)
    assert says(found[0].bench, "error", found, "proportional") == verdict
    noisy = faked(errors, "error", lambda t, seed: t.assign(limit=t["missing"] ** (1 + (seed - 2) / 2.2)))
    assert says(found[0].bench, "error", noisy, "proportional") == "undecided"


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "holds"), (2.0, "fails")])
def test_verdict_on_lambda(errors: list[Finding], factor: float, verdict: str) -> None:
    def change(table: pd.DataFrame, seed: int) -> pd.DataFrame:
        return table.assign(trained=table["trained"] * factor)

    found = faked(errors, "error", change)
    assert says(found[0].bench, "error", found, "(lambda / (1 + lambda))^2") == verdict


def test_verdict_on_the_lottery_ticket(errors: list[Finding]) -> None:
    bench = errors[0].bench

    def leaves(share: Callable[[int], float]) -> str:
        found = faked(
            errors,
            "error",
            lambda t, seed: t.assign(trained=t["trained"].where(t["weight"] > 0, share(seed) * t["start"])),
        )
        return says(bench, "error", found, "retraining")

    assert leaves(lambda seed: 1e-6) == "holds"
    assert leaves(lambda seed: 0.2) == "fails"
    assert leaves(lambda seed: 0.2 if seed == 1 else 0.0) == "undecided"
    without = faked(errors, "error", lambda t, seed: t[t["weight"] > 0])
    assert says(bench, "error", without, "retraining") == "undecided"


@pytest.mark.parametrize(("power", "verdict"), [(0, "fails"), (1, "holds")])
def test_verdict_on_the_bound(errors: list[Finding], power: int, verdict: str) -> None:
    def change(table: pd.DataFrame, seed: int) -> pd.DataFrame:
        return table.assign(limit=table["bound"] * (table["units"] / 20) ** power)

    found = faked(errors, "error", change)
    assert says(found[0].bench, "error", found, "Eq. 6") == verdict
    common = faked(errors, "error", lambda t, seed: change(t, seed).assign(expected=t["expected"] / 10))
    assert says(found[0].bench, "error", common, "Eq. 6") == "undecided"


@pytest.mark.parametrize(("ratio", "better", "product"), [
    (0.3 / 0.8, "holds", "holds"), (0.8, "holds", "fails"), (1.5, "fails", "fails"),
])  # fmt: skip
def test_verdicts_on_two_stages(errors: list[Finding], ratio: float, better: str, product: str) -> None:
    config = DistillationError.Config(**{**SMALL_ERROR, "teacher": 50, "middle": 25, "student": 10})
    bench = DistillationError(config)  # alpha 0.4, beta 0.5

    def change(table: pd.DataFrame, seed: int) -> pd.DataFrame:
        both = {"two_stage": ratio * table["direct"], "two_stage_trained": ratio * table["direct_trained"]}
        return table.assign(**both)

    found = [Finding(each.label, each.seed, bench, each.tables) for each in faked(errors, "stages", change)]
    assert says(bench, "two_stage", found, "smaller error") == better
    assert says(bench, "two_stage", found, "(1 - alpha)(1 - beta)") == product
    assert says(bench, "two_stage", found[:1], "smaller error") == "undecided"


@pytest.mark.parametrize("bench", [LinearisedDynamics, DistillationError])
def test_no_images(bench: type[Bench]) -> None:
    with pytest.raises(DataError, match="images"):
        bench().run(0, None, Memory())
    with pytest.raises(DataError, match="needed"):
        bench(bench.Config(images=100)).run(0, images(), Memory())


@pytest.mark.parametrize(("bench", "settings", "where"), [
    (LinearisedDynamics, {"widths": (8, 4)}, "widths"),
    (LinearisedDynamics, {"widths": (8,)}, "widths"),
    (LinearisedDynamics, {"weights": (-1.0, 1.0)}, "weights"),
    (DistillationError, {"weights": (-1.0, 1.0)}, "weights"),
    (DistillationError, {"shares": (0.5, 1.0)}, "shares"),
    (DistillationError, {"shares": (0.5, 0.502)}, "shares"),
    (DistillationError, {"middle": 10}, "student, middle, teacher"),
    (DistillationError, {"trained": 200}, "trained"),
])  # fmt: skip
def test_settings_that_make_no_sense(bench: type[Bench], settings: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bench(bench.Config(**settings)).run(0, images(), Memory())
    assert caught.value.where == where
    assert caught.value.fix
