"""The bench of the kernel regime: what a run does, what figures show, and verdicts that can go either way."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_digits

from kdpipe.api import Finding, Images
from kdpipe.benches.kernel_regime import CLAIMS, KernelRegime
from kdpipe.core.errors import ConfigError, DataError
from kdpipe.core.registry import benches
from kdpipe.theory.overlap import expected_gram, overlaps, top_eigenvectors
from kdpipe.theory.two_layer import ACTIVATIONS

SMALL = {
    "n_train": 40,
    "n_test": 30,
    "teacher_hidden": 12,
    "student_hidden": 4,
    "rate": 0.01,
    "rate_images": 0,
    "iterations": 120,
    "early": 6,
    "checkpoints": (20,),
    "rank": 20,
    "eigenvectors": 4,
}
STUDENTS = ["alone", "taught", "lottery", "pure", "imperfect", "fresh", "kernel_student"]


class Memory:
    """A desk that remembers, and that can be told to break off."""

    def __init__(self, until=math.inf):
        self.kept, self.made, self.told, self.until = {}, [], [], until

    def once(self, name, make):
        if name not in self.kept:
            if len(self.made) >= self.until:
                raise KeyboardInterrupt
            self.kept[name] = {key: np.array(value) for key, value in make().items()}
            self.made.append(name)
        return self.kept[name]

    def tell(self, done, what):
        self.told.append((done, what))


def digits():
    images, labels = load_digits(return_X_y=True)
    labels = labels.astype(np.int64)
    return Images("digits", images[::2] / 16, labels[::2], images[1::2] / 16, labels[1::2])


def bench(**settings):
    return KernelRegime(KernelRegime.Config(**{**SMALL, **settings}))


@pytest.fixture(scope="module")
def images():
    return digits()


@pytest.fixture(scope="module")
def ran(images):
    desk = Memory()
    return bench().run(0, images, desk), desk


def curve(tables, network, split="train"):
    rows = tables["losses"]
    return rows[(rows["network"] == network) & (rows["split"] == split)].sort_values("iteration")


def test_it_is_registered_and_defaults_are_the_papers():
    assert benches.get("kernel_regime") is KernelRegime
    c = KernelRegime().config
    assert (c.teacher_hidden, c.student_hidden, c.spread, c.rate, c.weight) == (100, 20, 1e-2, 2e-4, 0.01)
    assert (c.kernels, c.classes) == (7, (0, 1))
    assert KernelRegime().rate == pytest.approx(2e-4 * 10_000 / 400)
    assert bench(rate=1e-3, rate_images=0).rate == 1e-3


def test_tables_are_tidy_and_complete(ran):
    tables, desk = ran
    losses = tables["losses"]
    assert set(losses["network"]) == {"teacher", "kernel_teacher", *STUDENTS}
    assert {0, 20, 120} <= set(losses["iteration"])
    assert not losses.duplicated(["network", "iteration", "split"]).any()
    assert len(losses) == 9 * 2 * losses["iteration"].nunique()
    assert np.isfinite(losses["loss"]).all()
    units = tables["overlap"].groupby(["network", "eigenvectors"]).size()
    assert units["teacher", 4] == units["early", 4] == units["kernel_teacher", 1] == 12
    assert units["taught", 4] == units["imperfect", 20] == 4
    facts = tables["facts"].set_index(["network", "quantity"])["value"]
    weights = [facts["embedding", f"weight {k}"] for k in range(1, 8)]
    assert np.linalg.norm(weights) == pytest.approx(1)
    assert facts["embedding", "width 5"] == pytest.approx(2 * facts["embedding", "width 4"])
    assert all(facts[name, "largest stable rate at the start"] > 0.01 for name in desk.kept if name != "pure")
    assert [done for done, _ in desk.told] == sorted(done for done, _ in desk.told)
    assert desk.told[-1][0] == 1


def test_everything_that_learns_from_labels_learns(ran):
    for name in ("teacher", "kernel_teacher", *STUDENTS):
        losses = curve(ran[0], name)["loss"].to_numpy()
        if name == "pure":
            assert np.ptp(losses) == 0
        else:
            assert losses[-1] < 0.9 * losses[0]


def test_students_start_where_they_should(ran):
    tables, desk = ran
    first = {name: curve(tables, name)["loss"].iloc[0] for name in STUDENTS}
    assert first["taught"] == first["lottery"] == first["pure"]
    assert first["imperfect"] != first["taught"]
    # The student's sum over its units has its own root, not the teacher's.
    units = np.sort(np.random.default_rng([0, 2]).choice(12, 4, replace=False))
    rng = np.random.default_rng([0, 3])
    rng.normal(0, 1e-2, (12, 64))
    signs = rng.choice((-1.0, 1.0), 12)[units]
    y = np.repeat([1.0, -1.0], 20)
    for when, student in (("last", "taught"), ("early", "imperfect")):
        hidden = np.maximum(desk.kept["teacher"][f"{when}_train"][:, units], 0)
        loss = np.mean((y - hidden @ signs / math.sqrt(4)) ** 2)
        assert first[student] == pytest.approx(loss, rel=1e-5)


def test_lambda_holds_the_features_to_the_teachers(images):
    distances = {}
    for weight in (0.001, 5.0):
        desk = Memory()
        bench(weight=weight, rate=2e-3).run(0, images, desk)
        units = np.sort(np.random.default_rng([0, 2]).choice(12, 4, replace=False))
        phi = np.maximum(desk.kept["teacher"]["last_train"][:, units], 0)
        distances[weight] = [
            np.linalg.norm(np.maximum(desk.kept[name]["last_train"], 0) - phi) for name in ("taught", "fresh")
        ]
    assert distances[5.0][0] < 0.7 * distances[0.001][0]
    assert distances[5.0][1] < 0.7 * distances[0.001][1]


def test_overlaps_are_those_of_the_trained_features(ran, images):
    tables, desk = ran
    chooser = np.random.default_rng([0, 0])
    chosen = np.concatenate(
        [chooser.permutation(np.flatnonzero(images.train_labels == label))[:20] for label in (0, 1)]
    )
    x = images.train[chosen] / np.linalg.norm(images.train[chosen], axis=1, keepdims=True)
    vectors = top_eigenvectors(expected_gram(x @ x.T, "relu", 1e-2), 4)
    for name, when in (("teacher", "last"), ("early", "early"), ("taught", "last")):
        pre = desk.kept["teacher" if name == "early" else name][f"{when}_train"]
        rows = tables["overlap"]
        found = rows[(rows["network"] == name) & (rows["eigenvectors"] == 4)]["overlap"]
        expected = overlaps(ACTIVATIONS["relu"].value(pre), vectors)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_broken_run_goes_on_to_the_same_numbers(ran, images):
    desk = Memory(until=3)
    with pytest.raises(KeyboardInterrupt):
        bench().run(0, images, desk)
    assert desk.made == ["teacher", "alone", "taught"]
    desk.until = math.inf
    again = bench().run(0, images, desk)
    assert len(desk.made) == 9
    for name, table in ran[0].items():
        pd.testing.assert_frame_equal(again[name], table)


def test_seeds_draw_other_images_weights_and_units(ran, images):
    other = bench().run(1, images, Memory())
    for name in ("teacher", "alone"):
        assert curve(other, name)["loss"].iloc[-1] != curve(ran[0], name)["loss"].iloc[-1]


def test_test_images_influence_only_test_losses(ran, images):
    other = bench().run(0, replace(images, test=images.test[::-1] ** 2 + 0.1), Memory())
    for key, same in (("train", True), ("test", False)):
        one, two = (
            np.concatenate(
                [curve(tables, name, key)["loss"] for name in ("teacher", "kernel_student", "fresh")]
            )
            for tables in (ran[0], other)
        )
        assert np.array_equal(one, two) is same
    pd.testing.assert_frame_equal(other["overlap"], ran[0]["overlap"])
    pd.testing.assert_frame_equal(other["facts"], ran[0]["facts"])


def test_a_sum_of_errors_is_the_mean_times_the_images(ran, images):
    other = bench(loss="sum").run(0, images, Memory())
    for split, count in (("train", 40), ("test", 30)):
        np.testing.assert_allclose(
            curve(other, "alone", split)["loss"], count * curve(ran[0], "alone", split)["loss"], rtol=1e-6
        )


def test_too_large_a_rate_is_refused_before_anything_is_trained(images):
    desk = Memory()
    with pytest.raises(
        ConfigError, match=r"too large for the teacher: a step overshoots.*largest stable rate"
    ) as told:
        bench(rate=1.0).run(0, images, desk)
    assert desk.made == []
    stable = float(str(told.value).split("at the start is ")[1].split("\n")[0])
    bench(rate=0.5 * stable, iterations=30, early=6, checkpoints=()).run(0, images, Memory())
    scaled = bench(rate=1.0, rate_images=400)
    assert scaled.rate == pytest.approx(10)
    with pytest.raises(ConfigError, match=rf"well below {stable / 10:.3g} \(of 'rate_images' = 400 images\)"):
        scaled.run(0, images, Memory())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"classes": (0, 11)}, ConfigError, "no train images of class 11"),
        ({"n_train": 400}, ConfigError, "n_train\n.*use at most"),
        ({"n_test": 600}, ConfigError, "n_test\n.*use at most"),
    ],
)
def test_what_a_data_set_lacks_is_said(images, settings, error, message):
    with pytest.raises(error, match=message):
        bench(**settings).run(0, images, Memory())


def test_images_must_be_there_and_not_black(images):
    with pytest.raises(DataError, match="this bench needs images"):
        bench().run(0, None, Memory())
    black = replace(images, train=np.zeros_like(images.train))
    with pytest.raises(DataError, match="without a bright pixel"):
        bench().run(0, black, Memory())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": (1, 1)}, "two different classes"),
        ({"student_hidden": 13}, "13 of 12 units"),
        ({"early": 120}, "between 1 and 'iterations' - 1 = 119"),
        ({"checkpoints": (0,)}, "between 1 and"),
        ({"rank": 41}, "'rank' is 41, with 40 training images"),
        ({"eigenvectors": 50}, "'eigenvectors' is 50"),
        ({"n_train": 41}, "multiple of 2"),
        ({"activation": "elu"}, "activation"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        bench(**settings)


def made(label="made", seeds=5, seed0=0, overlap=None, ends=None, noise=0.0, **settings):
    """Findings with losses that fall from 1 to chosen ends, linear in log(1 + iteration)."""
    ends = {"teacher": 0.1, "taught": 0.2, "alone": 0.4, **(ends or {})}
    level = {"teacher": 0.3, "early": 0.2, **(overlap or {})}
    steps = np.array([0, 1, 3, 9, 20, 60, 120])
    found = []
    for seed in range(seed0, seed0 + seeds):
        rng = np.random.default_rng(seed)
        losses, units = [], []
        for name in ("teacher", "kernel_teacher", *STUDENTS):
            end = ends.get(name, 0.3) * math.exp(noise * rng.normal())
            falls = 1 + (end - 1) * np.log1p(steps) / np.log1p(120)
            if name == "pure":
                falls = np.full(len(steps), end)
            losses += [
                pd.DataFrame({"network": name, "iteration": steps, "split": split, "loss": falls})
                for split in ("train", "test")
            ]
        for name in ("teacher", "early", "taught", "imperfect", "kernel_teacher", "kernel_student"):
            values = level.get(name, 0.25) * np.exp(noise * rng.normal()) * np.array([0.9, 1.1])
            units += [(name, count, k, value) for count in (1, 4) for k, value in enumerate(values)]
        facts = [(name, "moved", 0.0 if name == "pure" else 1.0) for name in ("teacher", *STUDENTS)]
        tables = {
            "losses": pd.concat(losses),
            "overlap": pd.DataFrame(units, columns=["network", "eigenvectors", "unit", "overlap"]),
            "facts": pd.DataFrame(facts, columns=["network", "quantity", "value"]),
        }
        found.append(Finding(label, seed, bench(**settings), tables, "digits"))
    return found


def verdict(found, figure, text):
    (one,) = [v for v in bench().verdicts(figure, found) if text in v.claim]
    return one


def test_verdicts_can_hold_fail_and_stay_open():
    text = "the teacher ends with the lowest loss (training"
    one = verdict(made(), "figure1", text)
    assert one.verdict == "holds"
    assert "teacher 0.1, student with teacher 0.2, student without teacher 0.4" in one.numbers
    assert "factor in its favour 2 (2 to 2)" in one.numbers  # against the better rival
    assert "5 of 5 seeds agree" in one.numbers
    assert one.setting == "made"
    assert one.source == "Section 4.1, Figure 1"
    worse = verdict(made(ends={"teacher": 0.25}), "figure1", text)
    assert worse.verdict == "fails"
    assert "factor in its favour 0.8" in worse.numbers
    assert verdict(made(seeds=4), "figure1", text).verdict == "undecided"
    assert verdict(made(ends={"teacher": 0.1999}), "figure1", text).verdict == "undecided"  # a tie
    assert verdict(made(ends={"teacher": 0.19}, noise=0.3), "figure1", text).verdict == "undecided"


def test_a_seed_of_another_opinion_leaves_it_open():
    found = made(seeds=4) + made(seeds=1, seed0=4, ends={"teacher": 0.3})
    one = verdict(found, "figure1", "the teacher ends with the lowest loss (test")
    assert one.verdict == "undecided"
    assert "4 of 5 seeds agree" in one.numbers


def test_speed_is_that_to_a_loss_that_all_reach():
    one = verdict(made(), "figure1", "first at a common loss (training")
    # 0.4 is reached at log(1 + r) = 0.6 / 0.8 log(121) by the taught student, 0.6 / 0.9 by the teacher
    taught, teacher = 121 ** (0.6 / 0.8) - 1, 121 ** (0.6 / 0.9) - 1
    assert (
        f"student with teacher {taught:.0f}, student without teacher 120, teacher {teacher:.0f}"
        in one.numbers
    )
    assert one.verdict == "fails"
    assert (
        verdict(made(ends={"taught": 0.05}), "figure1", "first at a common loss (training").verdict == "holds"
    )


def test_halving_ignores_a_lead():
    found = made(ends={"taught": 0.6})
    one = verdict(found, "figure1", "halve its own loss")
    assert one.verdict == "fails"
    assert "5 seeds never get there" in one.numbers
    assert verdict(made(ends={"taught": 0.01}), "figure1", "halve its own loss").verdict == "holds"


def test_infinite_lambda_is_constant_or_not():
    text = "leaves weights and loss as they are"
    assert verdict(made(), "figure2", text).verdict == "holds"
    assert verdict(made(seeds=3), "figure2", text).verdict == "undecided"
    moving = made()
    facts = moving[2].tables["facts"]
    facts.loc[facts["network"] == "pure", "value"] = 1e-9
    assert verdict(moving, "figure2", text).verdict == "fails"


def test_overlaps_are_judged_with_the_eigenvectors_of_the_settings():
    text = "larger for the fully trained"
    one = verdict(made(), "figure5", text)
    assert one.verdict == "holds"
    assert "teacher 0.3, teacher at iteration 6 0.2" in one.numbers
    found = made()
    for each in found:
        table = each.tables["overlap"]
        table.loc[(table["eigenvectors"] == 1) & (table["network"] == "teacher"), "overlap"] = 0.01
    assert verdict(found, "figure5", text).verdict == "holds"
    assert "other numbers of eigenvectors: 0 with 1" in verdict(found, "figure5", text).numbers
    assert verdict(made(overlap={"teacher": 0.1}), "figure5", text).verdict == "fails"


def test_every_statement_of_every_figure_gets_a_verdict_per_variant():
    found = made("one") + made("two", activation="tanh")
    for figure in ("figure1", "figure2", "figure3", "figure4", "figure5", "figure6"):
        verdicts = bench().verdicts(figure, found)
        expected = sum(claim.figure == figure for claim in CLAIMS) + (figure == "figure2")
        assert [v.setting for v in verdicts] == ["one"] * expected + ["two"] * expected
    assert bench().verdicts("dependence", found) == []


def test_verdicts_survive_the_way_through_csv(ran, images, tmp_path):
    found = [Finding("real", 0, bench(), ran[0], "digits")]
    read = {}
    for name, table in ran[0].items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        read[name] = pd.read_csv(tmp_path / f"{name}.csv")
    again = [Finding("real", 0, bench(), read, "digits")]
    for figure in bench().plots:
        assert bench().verdicts(figure, again) == bench().verdicts(figure, found)


def test_loss_figures_show_each_variant_in_two_panels_with_bands():
    found = [f for label in ("a", "b", "c", "d") for f in made(label, noise=0.1)]
    plot = bench().draw("figure1", found)
    assert [panel.title for panel in plot.panels] == [
        f"{label}: {split} loss" for label in "abc" for split in ("training", "test")
    ]
    assert "Left out: d." in plot.caption
    assert plot.caption.startswith("5 seeds.")
    line = next(line for line in plot.panels[0].lines if line.label == "teacher")
    runs = np.stack([curve(one.tables, "teacher")["loss"] for one in found[:5]])[:, 1:]
    np.testing.assert_allclose(line.y, runs.mean(0))
    np.testing.assert_allclose(line.low, runs.min(0))
    np.testing.assert_allclose(line.high, runs.max(0))
    assert line.x[0] == 1  # a logarithmic axis has no 0
    assert (plot.panels[0].xscale, plot.panels[0].yscale) == ("log", "log")
    narrow = made(ends=dict.fromkeys(("teacher", "taught", "alone"), 0.5))
    assert bench().draw("figure1", narrow).panels[0].yscale == "linear"
    assert [one.label for one in bench().draw("figure2", found).panels[0].lines][1] == "student, λ = 0.01"


def test_histograms_share_bins_and_add_up_to_one():
    plot = bench().draw("figure5", made(noise=0.2))
    assert [panel.title for panel in plot.panels] == ["made: teachers", "made: students"]
    for panel in plot.panels:
        early, final = panel.lines
        np.testing.assert_array_equal(early.x, final.x)
        assert (early.y.sum(), final.y.sum()) == (pytest.approx(1), pytest.approx(1))
        assert early.kind == "bars"
    early, final = plot.panels[0].lines
    assert early.x @ early.y == pytest.approx(0.2, rel=0.25)
    assert final.x @ final.y > early.x @ early.y


def test_units_that_are_0_on_every_image_are_left_out_and_counted():
    found = made()
    for each in found:
        table = each.tables["overlap"]
        table.loc[(table["network"] == "teacher") & (table["unit"] == 0), "overlap"] = np.nan
    one = verdict(found, "figure5", "larger for the fully trained")
    assert "teacher 0.33, teacher at iteration 6 0.2" in one.numbers
    assert "0 on every image: teacher 1, teacher at iteration 6 0 a seed" in one.numbers
    line = bench().draw("figure5", found).panels[0].lines[1]
    assert line.y.sum() == pytest.approx(1)
    assert "0 on every image" not in verdict(made(), "figure5", "larger for the fully trained").numbers
    for each in found:
        table = each.tables["overlap"]
        table.loc[table["network"].isin(["teacher", "early"]), "overlap"] = np.nan
    assert verdict(found, "figure5", "larger for the fully trained").verdict == "undecided"
    assert bench().draw("figure5", found).panels[0].lines[1].y.sum() == 0


def test_histograms_of_equal_overlaps_have_a_width():
    same = dict.fromkeys(("teacher", "early"), 0.2)
    found = made(overlap=same, seeds=1)
    table = found[0].tables["overlap"]
    table["overlap"] = 0.2
    line = bench().draw("figure5", found).panels[0].lines[0]
    assert np.isfinite(line.x).all()
    assert line.y.sum() == pytest.approx(1)


def test_dependence_shows_ratios_over_iterations_eigenvectors_and_images():
    found = (
        made("few", n_train=20, rank=10) + made("many", ends={"taught": 0.1}) + made("t", activation="tanh")
    )
    found += made("all landmarks", rank=40) + made("other rate", n_train=60, rank=30, rate=0.02)
    panels = {panel.title: panel for panel in bench().draw("dependence", found).panels}
    lines = {line.label: line for line in panels["student without / with teacher: training loss"].lines}
    assert set(lines) == {"few", "many", "t", "all landmarks", "other rate", "equal"}
    assert lines["few"].y[-1] == pytest.approx(2)
    assert lines["many"].y[-1] == pytest.approx(4)
    over = {line.label: line for line in panels["relu: training loss at the end"].lines}
    np.testing.assert_array_equal(over["student without / with teacher"].x, [20, 40])
    np.testing.assert_allclose(over["student without / with teacher"].y, [2, 4])
    assert "tanh: training loss at the end" not in panels  # one number of images
    counts = panels["overlap: teacher / teacher at iteration 6"].lines[0]
    np.testing.assert_array_equal(counts.x, [1, 4])
    np.testing.assert_allclose(counts.y, 1.5)


def test_all_figures_are_drawn_from_a_real_run(ran):
    found = [Finding("ReLU", 0, bench(), ran[0], "digits")]
    for name, title in KernelRegime.plots.items():
        plot = bench().draw(name, found)
        assert (plot.name, plot.title) == (name, title)
        for panel in plot.panels:
            assert panel.xlabel
            assert panel.ylabel
            assert all(np.isfinite(line.y).all() for line in panel.lines)
        assert plot.caption


def test_data_sets_are_named_where_there_are_several():
    found = made() + [replace(one, dataset="cifar") for one in made()]
    assert {v.setting for v in bench().verdicts("figure1", found)} == {"made, digits", "made, cifar"}


def test_no_runs_is_an_error():
    with pytest.raises(DataError, match="no runs to show"):
        bench().draw("figure1", [])
