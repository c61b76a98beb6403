"""What jobs ask a cluster for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import yaml

from kdpipe.core.errors import ConfigError
from kdpipe.plan.config import Cluster, Config, Rule, check_config
from kdpipe.plan.jobs import Jobs
from kdpipe.plan.plan import Work
from tests.unit.synthetic import Made

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "workflow" / "profiles" / "slurm"
SPEED = "devices: [{device: Test, rate: 1.0e+6, source: none}]"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    (tmp_path / "throughput.yaml").write_text(SPEED)
    return Made(tmp_path)


def jobs(made: Made, gpus: int = 1, **cluster: Any) -> Jobs:
    config = {"results": str(made.results.root), "folder": str(made.root), "gpus": gpus, "cluster": cluster}
    return Jobs(made.plan, check_config(config))


def asked(found: dict[str, Any], attempt: int = 1, **wildcards: Any) -> dict[str, Any]:
    """The values that Snakemake makes of a rule's resources."""
    given = SimpleNamespace(**wildcards)
    takes_attempt = {name: value for name, value in found.items() if name in ("mem_mb", "runtime")}
    values = {name: value(given, attempt) for name, value in takes_attempt.items()}
    return {n: v(given) if callable(v) else v for n, v in found.items() if n not in values} | values


def test_without_a_site_a_rule_asks_for_what_it_names(made: Made) -> None:
    found = Jobs(made.plan, Config(gpus=1))("train_teacher", mem_mb=4000, runtime=240, gpu=1)
    assert found == {"gpu": 1, "mem_mb": 4000, "runtime": 240}


def test_the_nearest_word_wins(made: Made) -> None:
    wants = jobs(
        made,
        jobs={"partition": "all", "account": "lab", "qos": "low", "mem_mb": 1000},
        gpu_jobs={"partition": "gpu", "gpu_model": "a100", "mem_mb": 2000},
        rules={"distil_student": {"mem_mb": 3000, "extra": "--signal=USR1@120", "qos": None}},
    )
    bench = asked(wants("run_bench", mem_mb=4000, runtime=60))
    assert bench == {
        "gpu": 0,
        "mem_mb": 1000,
        "runtime": 60,
        "slurm_partition": "all",
        "slurm_account": "lab",
        "qos": "low",
    }
    teacher = asked(wants("train_teacher", mem_mb=4000, runtime=240, gpu=2))
    assert (teacher["slurm_partition"], teacher["gpu_model"], teacher["mem_mb"]) == ("gpu", "a100", 2000)
    student = asked(wants("distil_student", mem_mb=4000, runtime=240, gpu=2))
    assert (student["gpu"], student["mem_mb"], student["slurm_extra"]) == (2, 3000, "--signal=USR1@120")
    assert "qos" not in student
    assert student["slurm_account"] == "lab"


@pytest.mark.parametrize("gpu", [2, lambda wildcards: 2])
def test_gpus_by_generic_resource(made: Made, gpu: Any) -> None:
    wants = jobs(made, gpu_jobs={"gres": "gpu:a100"})
    found = asked(wants("train_teacher", mem_mb=1, runtime=1, gpu=gpu))
    assert found["gres"] == "gpu:a100:2"
    assert "gpu" not in found  # the executor would make --gpus of it
    assert "gres" not in wants("run_bench", mem_mb=1, runtime=1)


@pytest.mark.parametrize("gpu", [2, lambda wildcards: 2])
def test_a_site_without_gpus(made: Made, gpu: Any) -> None:
    wants = jobs(made, gpus=0, gpu_jobs={"gres": "gpu:a100", "partition": "gpu"})
    found = asked(wants("train_teacher", mem_mb=1, runtime=1, gpu=gpu))
    assert found["gpu"] == 0
    assert not {"gres", "slurm_partition"} & found.keys()


def test_a_retry_asks_for_twice_as_much_up_to_a_cap(made: Made) -> None:
    found = jobs(made, most_mem_mb=10000, most_minutes=100)("run_bench", mem_mb=4000, runtime=60)
    assert [asked(found, attempt)["mem_mb"] for attempt in (1, 2, 3)] == [4000, 8000, 10000]
    assert [asked(found, attempt)["runtime"] for attempt in (1, 2)] == [60, 100]
    by_wildcard = jobs(made)("run_bench", mem_mb=lambda w: 100 * w.k, runtime=1)
    assert asked(by_wildcard, 2, k=3)["mem_mb"] == 600
    large = jobs(made, most_mem_mb=1000)("run_bench", mem_mb=4000, runtime=60)
    assert [asked(large, attempt)["mem_mb"] for attempt in (1, 6)] == [4000, 4000]


def with_work(made: Made, images: int) -> str:
    """Give a run so many images of one multiply-add, trained once; its name."""
    name = made.run("kd", "standard", 0)
    made.plan.runs[name] = replace(made.plan.runs[name], work=Work(1, images, 1, 0, 0, 0, 2, 2, 1, 0))
    return name


def test_a_training_is_given_its_estimate_with_room_to_spare(made: Made) -> None:
    name = with_work(made, images=3600 * 10**6)  # an hour at a million multiply-adds a second
    other = made.run("dkd", "standard", 0)
    rule = {"mem_mb": 4000, "runtime": 240, "runs": lambda w: [w.student]}
    found = jobs(made, safety=3, least_minutes=20)("distil_student", **rule)
    assert asked(found, student=name)["runtime"] == 180
    assert asked(found, 2, student=name)["runtime"] == 360
    assert asked(found, student=other)["runtime"] == 240  # nothing is known of its work
    assert asked(jobs(made, least_minutes=200)("distil_student", **rule), student=name)["runtime"] == 200
    stated = jobs(made, rules={"distil_student": {"minutes": 7}})("distil_student", **rule)
    assert asked(stated, student=name)["runtime"] == 7
    pack = jobs(made, safety=1)("distil_student", **{**rule, "runs": lambda w: [name, name]})
    assert asked(pack)["runtime"] == 120


def test_estimates_are_made_once_and_only_where_they_are_wanted(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = with_work(made, images=3600 * 10**6)
    calls = []
    monkeypatch.setattr("kdpipe.plan.jobs.read_rates", lambda *_: calls.append(1))
    found = jobs(made)("distil_student", mem_mb=1, runtime=240, runs=lambda w: [w.student])
    assert not calls
    for _ in range(100):
        asked(found, student=name)
    assert calls == [1]
    config = check_config({"cluster": {}})
    on_a_node = Jobs(made.plan, config, estimated=False)(
        "distil_student", mem_mb=1, runtime=9, runs=lambda w: [name]
    )
    assert asked(on_a_node)["runtime"] == 9
    assert calls == [1]


def test_the_site_file_is_checked() -> None:
    values = yaml.safe_load((PROFILE / "site.yaml").read_text())
    config = check_config(values)
    assert config.cluster == Cluster.model_validate(values["cluster"])
    assert config.cluster.safety == Cluster().safety  # what it shows is what holds without it
    assert config.cluster.most_minutes == Cluster().most_minutes
    assert config.cluster.most_mem_mb == Cluster().most_mem_mb
    assert config.cluster.least_minutes == Cluster().least_minutes
    with pytest.raises(ConfigError, match="did you mean 'partition'"):
        check_config({"cluster": {"jobs": {"partitoin": "gpu"}}})
    with pytest.raises(ConfigError, match="train_teacher"):
        check_config({"cluster": {"rules": {"train_techer": {"mem_mb": 1}}}})


def rules() -> dict[str, str]:
    """The text of each of the workflow's rules."""
    text = "".join(file.read_text() for file in sorted((ROOT / "workflow" / "rules").glob("*.smk")))
    return {part.split(":")[0]: part for part in re.split(r"^rule ", text, flags=re.MULTILINE)[1:]}


def test_every_rule_that_runs_on_nodes_can_be_named() -> None:
    listed = re.search(r"^localrules:.*\n((?:    \w+,\n)+)", (ROOT / "Snakefile").read_text(), re.MULTILINE)
    assert listed
    elsewhere = rules().keys() - set(re.findall(r"\w+", listed[1]))
    assert elsewhere == set(get_args(Rule))
    for name in elsewhere:
        assert re.search(rf'    resources:\n        \*\*jobs\(\s*"{name}"', rules()[name]), name


def test_only_the_preparation_of_data_may_download() -> None:
    shells = {name: text.partition("    shell:\n")[2] for name, text in rules().items()}
    assert [name for name, command in shells.items() if "download" in command] == ["prepare_data"]
