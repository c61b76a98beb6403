"""Chains of self-distillation: shared first steps, one run per step, and their tables and figures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from kdpipe.core.errors import CheckpointError, ConfigError, UnknownNameError
from kdpipe.plan.imported import check_imports
from kdpipe.plan.plan import Plan
from kdpipe.plan.resolve import resolve

SHA = "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"


def study(*chains, **changes):
    """Changes that make a study of chains alone."""
    made = {"pairs": [], "recipes": [], "methods": [], "chains": list(chains), "seeds": [0]}
    return {**made, "metrics": ["top1"], **changes}


def chain(**changes):
    return {"models": "resnet8", "alphas": [0.0, 0.35, 0.7], "steps": 5, **changes}


def runs_of(plan: Plan, alpha: float, seed: int = 0, name: str = "resnet8") -> list[str]:
    cells = [c for s in plan.studies.values() for c in s.cells if c.part == "chain"]
    own = [c for c in cells if (c.recipe, c.seed, c.teacher) == (f"α = {alpha:g}", seed, name)]
    assert [c.row for c in own] == [str(step) for step in range(1, len(own) + 1)]
    return [c.run for c in own]


def test_the_first_step_is_one_run_for_every_alpha(config):
    plan = resolve(config(a=study(chain(), seeds=[0, 1])))
    assert len(plan.runs) == 2 * (1 + 3 * 4)
    for seed in (0, 1):
        firsts = {runs_of(plan, alpha, seed)[0] for alpha in (0.0, 0.35, 0.7)}
        assert len(firsts) == 1
        settings = plan.runs[firsts.pop()].run.spec.recipe.settings
        assert (settings["alpha"], settings["generations"]) == (1.0, 0)


def test_each_step_is_taught_by_the_one_before(config):
    plan = resolve(config(a=study(chain())))
    names = runs_of(plan, 0.35)
    for before, after in pairwise(names):
        assert plan.runs[after].teacher == before
        assert plan.teacher_weights(after) == [f"runs/{before}/model.safetensors"]
        assert plan.runs[after].run.pair == ("resnet8", None)
    assert [plan.runs[n].run.spec.recipe.settings["alpha"] for n in names] == [1.0, *[0.35] * 4]


def test_one_more_alpha_adds_its_own_chain_and_nothing_else(config):
    small, large = (resolve(config(a=study(chain(alphas=a)))) for a in ([0.0, 0.35], [0.0, 0.2, 0.35]))
    assert not small.runs.keys() - large.runs.keys()
    new = large.runs.keys() - small.runs.keys()
    assert new == set(runs_of(large, 0.2)[1:])


def test_one_more_step_adds_one_run_per_alpha(config):
    small, large = (resolve(config(a=study(chain(steps=n)))) for n in (3, 4))
    assert len(large.runs.keys() - small.runs.keys()) == 3
    assert not small.runs.keys() - large.runs.keys()


def test_weights_that_a_rule_picks_are_passed_on(config):
    changes = {"split": "train-val", "keep": {"every": 60}}
    plan = resolve(config(a=study(chain(pass_on="best_accuracy", steps=3), **changes)))
    names = runs_of(plan, 0.0)
    for before, after in pairwise(names):
        (choice,) = plan.runs[before].choices
        assert choice.startswith("best_accuracy-")
        assert plan.teacher_weights(after) == [f"runs/{before}/sampled/{choice}/model.safetensors"]
        assert plan.runs[before].keep == (60, 120, 180)
    cell = next(c for c in plan.studies["a"].cells if c.run == names[1])
    assert cell.place == f"runs/{names[1]}/sampled/{cell.choice}"
    with pytest.raises(ConfigError, match="holds none out"):
        resolve(config(b=study(chain(pass_on="best_accuracy"))))
    with pytest.raises(ConfigError, match="only the last epoch"):
        resolve(config(c=study(chain(pass_on="best_accuracy"), split="train-val")))


def test_networks_may_differ_from_step_to_step(config):
    plan = resolve(config(a=study(chain(models=["resnet14", "resnet8"], steps=3, label="shrinking"))))
    names = runs_of(plan, 0.0, name="shrinking")
    assert [plan.runs[n].run.spec.model.name for n in names] == ["resnet14", "resnet8", "resnet8"]
    assert [plan.runs[n].run.pair for n in names] == [
        ("resnet14", None),
        ("resnet14", "resnet8"),
        ("resnet8", None),
    ]


def test_a_pretrained_start_is_part_of_the_id_and_has_to_be_imported(config):
    start = {"dataset": "imagenet", "files": {"imagenet_resnet18": SHA}}
    made = config(a=study(chain(models="imagenet_resnet18", start=start, steps=2)))
    plan = resolve(made)
    drawn = resolve(config(b=study(chain(models="imagenet_resnet18", steps=2))))
    assert not plan.runs.keys() & drawn.runs.keys()
    assert {p.run.spec.start.sha256 for p in plan.runs.values()} == {SHA}
    from kdpipe.core.paths import Results

    with pytest.raises(CheckpointError, match="starts from have not been imported") as caught:
        check_imports(plan, Results(Path(made.results)))
    assert "kdpipe import-teacher FILE --model imagenet_resnet18 --dataset imagenet" in str(caught.value)
    with pytest.raises(ConfigError, match="images of 3 channels; those of digits have 1"):
        resolve(config(d=study(chain(start=start), dataset="digits")))
    with pytest.raises(ConfigError, match="names no weights of resnet8"):
        resolve(config(c=study(chain(start=start))))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alphas": [0.1, 0.1]}, "listed twice"),
        ({"alphas": [1.2]}, "less than or equal to 1"),
        ({"steps": 1}, "greater than or equal to 2"),
        ({"models": ["resnet8", "resnet14", "resnet20"], "steps": 2}, "3 networks are named for 2 steps"),
        ({"alfas": [0.1]}, "unknown key 'alfas'"),
    ],
)
def test_a_wrong_chain_is_one_clear_message(config, changes, said):
    with pytest.raises(ConfigError, match=said):
        resolve(config(a=study(chain(**changes))))


def test_an_unknown_network_is_named(config):
    with pytest.raises(UnknownNameError, match="resnet8"):
        resolve(config(a=study(chain(models="resnet9"))))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chains": []}, "asks for nothing"),
        ({"protocol": ""}, "protocol"),
        ({"methods": ["kd"]}, "'pairs' is missing"),
        ({"plots": ["figure1"]}, "only benches have plots"),
    ],
)
def test_what_a_study_lacks_is_said(config, changes, said):
    with pytest.raises(ConfigError, match=said):
        resolve(config(a={**study(chain()), **changes}))


def test_a_plan_of_chains_survives_its_file(config):
    plan = resolve(config(a=study(chain())))
    assert Plan.from_json(plan.to_json()) == plan


# From results to tables


def test_tables_and_figures_show_every_step(config, tmp_path):
    from kdpipe.core.files import write_json
    from kdpipe.core.paths import Results
    from kdpipe.tables.chains import by_alpha, by_step, chain_frame
    from kdpipe.tables.layout import lay_out
    from kdpipe.tables.render import render

    made = config(a=study(chain(), seeds=[0, 1], metrics=["top1", "train_top1"]))
    plan, results = resolve(made), Results(Path(made.results))
    planned = plan.studies["a"]
    for cell in planned.cells:
        alpha, step = float(cell.recipe.removeprefix("α = ")), int(cell.row)
        value = 90 + (0 if step == 1 else step * alpha) + cell.seed
        values = {"status": "finished", "values": {"top1": value, "train_top1": value + 1}}
        write_json(results.run(cell.run).metrics, values)
    layout = lay_out(planned, plan, results)
    assert [b.title for b in layout.blocks] == [
        "top-1 (%, higher is better): self-distillation of resnet8",
        "train top-1 (%, higher is better): self-distillation of resnet8",
    ]
    block = layout.blocks[0]
    assert [c.label for c in block.columns] == ["α = 0", "α = 0.35", "α = 0.7"]
    assert {e.text for e in block.lines[0].entries} == {"90.50 ± 0.71 (n=2)"}
    assert block.lines[4].entries[2].text == "94.00 ± 0.71 (n=2)"
    data = chain_frame(layout)
    assert len(data) == 2 * 3 * 5
    rows = data[(data.alpha == 0.7) & (data.step == 5)].sort_values("seed")
    assert rows["top1"].tolist() == [93.5, 94.5]
    last = by_alpha(planned, layout).panels[1].lines[4]
    assert (last.label, last.y.tolist(), last.low.tolist()) == (
        "step 5",
        pytest.approx([90.5, 92.25, 94.0]),
        pytest.approx([90.0, 91.75, 93.5]),
    )
    steps = by_step(planned, layout)
    assert [p.ylabel for p in steps.panels] == ["training accuracy (%)", "test accuracy (%)"]
    assert steps.panels[1].lines[2].y.tolist() == pytest.approx([90.5, 91.9, 92.6, 93.3, 94.0])
    assert {p.name for p in render(planned, plan, results)} >= {"table.html", "table.tex", "seeds.csv"}
    table = pd.read_csv(results.study("a") / "table.csv")
    assert len(table) == 2 * 3 * 5
    assert set(table["n"]) == {2}
