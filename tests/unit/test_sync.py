"""One MLflow run per training run and one point per epoch, whatever was interrupted, lost or repeated."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import contextmanager

import pytest

from kdpipe.core.errors import ResultsError, TrackingError, UnknownNameError
from kdpipe.core.files import read_json, write_json
from kdpipe.core.paths import Results
from kdpipe.core.specs import DataSpec, Part, Protocol, Run, RunSpec, TeacherRef
from kdpipe.plan.plan import Plan, PlannedRun
from kdpipe.tracking import sync as sync_module
from kdpipe.tracking.journal import Journal
from kdpipe.tracking.sync import sync


def teacher_run(dataset, seed=0):
    spec = RunSpec(
        data=DataSpec(dataset=dataset, revision=1),
        model=Part(name="resnet14", revision=1),
        protocol=Protocol(lr=0.1, epochs=3, batch_size=64),
        recipe=Part(name="standard", revision=1),
        seed=seed,
    )
    return Run(spec=spec, label=f"t_s{seed}", protocol="quick", pair=("resnet14", None), recipe="standard")


def student_run(teacher, method="kd", **settings):
    spec = teacher.spec.model_copy(
        update={
            "recipe": None,
            "model": Part(name="resnet8", revision=1),
            "method": Part(name=method, revision=1, settings=settings),
            "teacher": TeacherRef(run=teacher.id),
        }
    )
    pair = ("resnet14", "resnet8")
    return Run(spec=spec, label=f"{method}_s0", protocol="quick", pair=pair, recipe="standard")


class World:
    """A results folder with an own data set (so an own experiment) in the store that all tests share."""

    def __init__(self, root, dataset, uri):
        self.results, self.dataset, self.uri = Results(root), dataset, uri
        self.teacher = teacher_run(dataset)
        self.student = student_run(self.teacher, alpha=0.9, beta=(1, 2))
        self.plan = Plan(
            {
                self.teacher.name: PlannedRun(self.teacher, None, "d", studies=("one", "two")),
                self.student.name: PlannedRun(self.student, self.teacher.name, "d", studies=("one",)),
            }
        )

    def paths(self, run):
        return self.results.run(run.name)

    def train(self, run, first=1, last=3, status="finished"):
        """Do to the folder what a training does."""
        paths = self.paths(run)
        write_json(paths.spec, {**run.model_dump(mode="json"), "id": run.id, "name": run.name})
        book = Journal(paths.journal)
        book.truncate_after(first - 1)
        book.append("status", status="running")
        for epoch in range(first, last + 1):
            book.append("metrics", step=epoch, values={"loss": 1 / epoch, "seconds": time.time()})
            time.sleep(0.002)
        if status in ("killed", "running"):
            return
        book.append("status", status=status)
        if status in ("finished", "collapsed"):
            write_json(paths.status, {"status": status, "epoch": last, "reason": ""})
            write_json(paths.provenance, {"git": {"commit": "abc", "changed": True}, "slurm_job": "7"})

    def evaluate(self, run, epoch=None, **values):
        paths = self.paths(run)
        paths = paths if epoch is None else paths.sampled(epoch)
        now = time.time_ns() // 1_000_000
        write_json(paths.metrics, {"status": "finished", "epoch": 3, "time": now, "values": values})

    @contextmanager
    def in_training(self, run):
        """Hold the run's lock, as the process that trains it does."""
        with open(self.paths(run).lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def sync(self, plan=True, **options):
        options = {"uri": self.uri, "quiet": True} | options
        return sync(self.results, self.plan if plan else None, **options)

    def forget(self):
        for cursor in self.results.root.glob("runs/*/.synced.json"):
            cursor.unlink()

    @property
    def client(self):
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def runs(self):
        """MLflow's runs by the name of the training run; it is an error to have two of one name."""
        experiment = self.client.get_experiment_by_name(f"kdpipe/{self.dataset}")
        found = self.client.search_runs([experiment.experiment_id])
        names = [r.data.tags["kdpipe.run"] for r in found]
        assert len(set(names)) == len(names)
        return dict(zip(names, found, strict=True))

    def of(self, run):
        return self.runs()[run.name]

    def curve(self, run, key):
        held = self.client.get_metric_history(self.of(run).info.run_id, key)
        return [(m.step, m.value) for m in sorted(held, key=lambda m: (m.step, m.timestamp))]


LOSSES = [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def world(tmp_path, request, uri):
    return World(tmp_path / "results", request.node.name, uri)


@pytest.fixture
def trained(world):
    world.train(world.teacher)
    world.train(world.student)
    world.evaluate(world.teacher, top1=90.0)
    world.evaluate(world.student, top1=80.0, ece=0.05)
    return world


def test_each_run_is_logged_once_and_whole(trained):
    report = trained.sync()
    assert (report.runs, report.created, report.updated, report.failed) == (2, 2, 0, {})
    assert report.metrics == 2 * 3 * 2 + 1 + 2
    assert "2 runs, 2 new, 0 updated, 15 points" in str(report)
    teacher, student = trained.of(trained.teacher), trained.of(trained.student)
    assert student.info.run_name == trained.student.name
    assert student.info.status == "FINISHED"
    assert student.info.start_time <= student.info.end_time
    assert trained.curve(trained.student, "loss") == LOSSES
    assert trained.curve(trained.student, "final.ece") == [(3, 0.05)]
    tags = student.data.tags
    assert tags["mlflow.parentRunId"] == teacher.info.run_id
    own = {k.removeprefix("kdpipe."): v for k, v in tags.items() if k.startswith("kdpipe.")}
    assert own.pop("group").startswith("resnet14/resnet8/standard/kd-")
    assert own == {
        "run": trained.student.name,
        "id": trained.student.id,
        "kind": "student",
        "pair": "resnet14/resnet8",
        "teacher": "resnet14",
        "student": "resnet8",
        "recipe": "standard",
        "method": "kd",
        "seed": "0",
        "protocol": "quick",
        "scale": "full",
        "dataset": trained.dataset,
        "status": "finished",
        "git": "abc (changed)",
        "slurm_job": "7",
        "study.one": "1",
    }
    assert {"kdpipe.study.one", "kdpipe.study.two"} <= teacher.data.tags.keys()
    params = student.data.params
    assert params["protocol.lr"] == "0.1"
    assert params["protocol.nesterov"] == "false"
    assert params["data.dataset"] == trained.dataset
    assert (params["method"], params["method.alpha"], params["method.beta"]) == ("kd", "0.9", "[1, 2]")
    assert params["teacher.run"] == trained.teacher.id


def test_the_journals_own_times_are_kept(trained):
    from kdpipe.tracking.journal import read

    trained.sync()
    held = trained.client.get_metric_history(trained.of(trained.student).info.run_id, "loss")
    written = [e.time for e in read(trained.paths(trained.student).journal) if e.kind == "metrics"]
    assert sorted(m.timestamp for m in held) == written


def test_a_second_sync_does_nothing(trained, monkeypatch):
    trained.sync()

    def never(*_):
        raise AssertionError("a run without news was looked at")

    monkeypatch.setattr(sync_module._Target, "__init__", never)
    report = trained.sync()
    assert (report.runs, report.created, report.updated, report.metrics) == (2, 0, 0, 0)


def test_losing_the_cursors_doubles_nothing(trained):
    trained.sync()
    before = trained.runs()
    trained.forget()
    report = trained.sync()
    assert (report.created, report.updated, report.metrics) == (0, 2, 0)
    after = trained.runs()
    assert {n: r.info.run_id for n, r in after.items()} == {n: r.info.run_id for n, r in before.items()}
    assert trained.curve(trained.student, "loss") == LOSSES


@pytest.mark.parametrize("text", ["", "[1]", '{"1@2": {"run_id": 3}}', '{"1@2": 5}'])
def test_a_damaged_cursor_is_as_good_as_none(trained, text):
    trained.sync()
    (trained.paths(trained.student).root / ".synced.json").write_text(text)
    assert trained.sync().metrics == 0
    assert trained.curve(trained.student, "loss") == LOSSES


def test_mlflow_itself_stores_a_repeated_point_once(trained):
    from mlflow.entities import Metric

    trained.sync()
    run_id = trained.of(trained.student).info.run_id
    again = trained.client.get_metric_history(run_id, "loss")
    points = [Metric(m.key, m.value, m.timestamp, m.step) for m in again]
    trained.client.log_batch(run_id, metrics=points)
    assert trained.curve(trained.student, "loss") == LOSSES


def test_a_run_that_grows_between_syncs(world):
    world.train(world.teacher, last=1, status="running")
    with world.in_training(world.teacher):
        world.sync()
        assert world.of(world.teacher).info.status == "RUNNING"
        book = Journal(world.paths(world.teacher).journal)
        for epoch in (2, 3):
            book.append("metrics", step=epoch, values={"loss": 1 / epoch})
            world.sync()
    assert world.curve(world.teacher, "loss") == LOSSES


def test_a_run_that_dies_without_a_word_is_not_running_for_ever(world):
    world.train(world.teacher, last=1, status="running")
    with world.in_training(world.teacher):
        world.sync()
    assert world.sync().updated == 1
    run = world.of(world.teacher)
    assert (run.info.status, run.data.tags["kdpipe.status"]) == ("KILLED", "killed")
    assert world.sync().updated == 0
    world.train(world.teacher, first=2, status="running")  # goes on where it was
    with world.in_training(world.teacher):
        world.sync()
        assert world.of(world.teacher).info.status == "RUNNING"
    assert world.curve(world.teacher, "loss") == LOSSES


def test_a_process_that_syncs_often_asks_for_a_curve_once(world, monkeypatch):
    asked = []
    history = sync_module._Target.history

    def counted(self, key):
        asked.extend([key] if key not in self.curves and not self.created else [])
        return history(self, key)

    world.train(world.teacher, last=1, status="running")
    world.sync()
    monkeypatch.setattr(sync_module._Target, "history", counted)
    book, memory = Journal(world.paths(world.teacher).journal), {}
    with world.in_training(world.teacher):
        for epoch in (2, 3):
            book.append("metrics", step=epoch, values={"loss": 1 / epoch})
            world.sync(memory=memory)
    assert asked == ["loss", "seconds"]
    assert world.sync(memory=memory).updated == 1  # it has ended
    assert memory == {}
    assert world.curve(world.teacher, "loss") == LOSSES


def test_what_another_process_sent_meanwhile_is_not_sent_again(world):
    memory = {}
    world.train(world.teacher, last=1, status="running")
    with world.in_training(world.teacher):
        world.sync(memory=memory)
        world.train(world.teacher, first=2, last=2, status="running")
        world.sync()  # another process
        world.train(world.teacher, first=2, status="running")  # killed and resumed: epoch 2 once more
        world.sync(memory=memory)
    assert world.curve(world.teacher, "loss") == LOSSES
    assert len(world.curve(world.teacher, "seconds")) == 3


def test_a_send_of_which_nobody_knows_whether_it_arrived_is_compared(world, monkeypatch):
    from mlflow.exceptions import MlflowException

    memory = {}
    world.train(world.teacher, last=1, status="running")
    with world.in_training(world.teacher):
        world.sync(memory=memory)
        world.train(world.teacher, first=2, last=2, status="running")
        points = sync_module._Target.points

        def arrive_without_an_answer(self, sent):
            points(self, sent)
            raise MlflowException("timed out")

        with monkeypatch.context() as patch:
            patch.setattr(sync_module._Target, "points", arrive_without_an_answer)
            with pytest.raises(TrackingError, match="does not answer in time"):
                world.sync(memory=memory)
        world.train(world.teacher, first=2, status="running")
        world.sync(memory=memory)
    assert world.curve(world.teacher, "loss") == LOSSES
    assert len(world.curve(world.teacher, "seconds")) == 3


@pytest.mark.parametrize("forgetful", [False, True])
def test_a_killed_and_resumed_run_goes_on_in_its_mlflow_run(world, forgetful):
    world.train(world.teacher, last=2, status="killed")
    world.sync()  # sees epoch 2, of which no state was saved
    seconds = world.curve(world.teacher, "seconds")
    before = world.of(world.teacher).info.run_id
    world.train(world.teacher, first=2)
    if forgetful:
        world.forget()
    world.sync()
    assert world.of(world.teacher).info.run_id == before
    assert world.of(world.teacher).info.status == "FINISHED"
    assert world.curve(world.teacher, "loss") == LOSSES
    assert world.curve(world.teacher, "seconds")[:2] == seconds
    assert len(world.curve(world.teacher, "seconds")) == 3


def test_a_torn_last_line(world):
    world.train(world.teacher, last=2, status="killed")
    journal = world.paths(world.teacher).journal
    journal.write_bytes(journal.read_bytes()[:-9])
    world.sync()
    assert world.curve(world.teacher, "loss") == LOSSES[:1]
    world.train(world.teacher, first=2)
    world.sync()
    assert world.curve(world.teacher, "loss") == LOSSES


def test_a_sync_that_dies_half_way_is_made_up_for(trained, monkeypatch):
    with monkeypatch.context() as patch:

        def die(*_):
            raise KeyboardInterrupt

        patch.setattr(sync_module._Target, "status", die)
        with pytest.raises(KeyboardInterrupt):
            trained.sync()
    report = trained.sync()
    assert (report.created, report.updated) == (1, 1)
    assert len(trained.runs()) == 2
    assert trained.curve(trained.teacher, "loss") == LOSSES


@pytest.mark.parametrize(
    ("status", "state", "tag"),
    [
        ("collapsed", "FINISHED", "collapsed"),
        ("failed", "FAILED", "failed"),
        ("interrupted", "KILLED", "interrupted"),
        ("killed", "KILLED", "killed"),
    ],
)
def test_the_state_of_a_run(world, status, state, tag):
    world.train(world.teacher, status=status)
    world.sync()
    run = world.of(world.teacher)
    assert (run.info.status, run.data.tags["kdpipe.status"]) == (state, tag)
    world.train(world.teacher, first=4, last=3)  # runs again, and ends well
    world.sync()
    run = world.of(world.teacher)
    assert (run.info.status, run.data.tags["kdpipe.status"]) == ("FINISHED", "finished")


def test_values_that_are_not_finite_are_left_out_and_named(world):
    world.train(world.teacher, last=2, status="killed")
    book = Journal(world.paths(world.teacher).journal)
    book.append("metrics", step=3, values={"loss": float("nan"), "loss_ce": float("inf"), "lr": 0.1})
    world.sync()
    assert world.curve(world.teacher, "loss") == LOSSES[:2]
    assert world.curve(world.teacher, "lr") == [(3, 0.1)]
    assert world.of(world.teacher).data.tags["kdpipe.not_finite"] == "loss, loss_ce"


def test_a_parent_that_comes_later_is_filled_in(world):
    world.train(world.student)
    world.sync()
    assert "mlflow.parentRunId" not in world.of(world.student).data.tags
    world.train(world.teacher)
    world.sync()
    assert world.of(world.student).data.tags["mlflow.parentRunId"] == world.of(world.teacher).info.run_id


def test_a_deleted_run_is_made_again_and_its_students_follow(trained):
    trained.sync()
    old = trained.of(trained.teacher).info.run_id
    trained.client.delete_run(old)
    report = trained.sync()
    assert (report.created, report.updated) == (1, 1)
    new = trained.of(trained.teacher).info.run_id
    assert new != old
    assert trained.curve(trained.teacher, "loss") == LOSSES
    assert trained.of(trained.student).data.tags["mlflow.parentRunId"] == new


def test_a_deleted_experiment_is_restored(trained):
    trained.sync()
    experiment = trained.client.get_experiment_by_name(f"kdpipe/{trained.dataset}")
    trained.client.delete_experiment(experiment.experiment_id)
    trained.sync()
    assert len(trained.runs()) == 2
    assert trained.curve(trained.teacher, "loss") == LOSSES


def test_new_measures_and_sampled_checkpoints_follow(trained):
    trained.sync()
    trained.evaluate(trained.student, top1=81.0, ece=0.05, brier=0.3)
    trained.evaluate(trained.teacher, epoch=2, top1=70.0)
    trained.evaluate(trained.teacher, epoch=3, top1=75.0)
    assert trained.sync().metrics == 4
    assert trained.of(trained.student).data.metrics["final.top1"] == 81.0
    assert trained.curve(trained.student, "final.ece") == [(3, 0.05)]
    assert trained.curve(trained.teacher, "sampled.top1") == [(2, 70.0), (3, 75.0)]


def test_a_changed_param_is_told_by_a_tag_and_stops_nothing(trained):
    book = Journal(trained.paths(trained.teacher).journal)
    book.append("params", values={"parameters": 10})
    trained.sync()
    book.append("params", values={"parameters": 11, "new": 1})
    assert trained.sync().failed == {}
    run = trained.of(trained.teacher)
    assert (run.data.params["parameters"], run.data.params["new"]) == ("10", "1")
    assert run.data.tags["kdpipe.changed_params"] == '{"parameters": "11"}'


def test_a_study_that_joins_later_is_tagged(trained):
    trained.sync()
    planned = trained.plan.runs[trained.student.name]
    trained.plan.runs[trained.student.name] = PlannedRun(
        planned.run, planned.teacher, planned.data, studies=("late",)
    )
    trained.sync()
    assert {"kdpipe.study.one", "kdpipe.study.late"} <= trained.of(trained.student).data.tags.keys()
    assert trained.sync().updated == 0


def test_without_a_plan_the_folder_tells_all(trained):
    report = trained.sync(plan=False)
    assert report.created == 2
    tags = trained.of(trained.student).data.tags
    assert tags["mlflow.parentRunId"] == trained.of(trained.teacher).info.run_id
    assert trained.sync(plan=False).updated == 0


def test_only_the_named_runs_and_their_teachers(trained):
    other = teacher_run(trained.dataset, seed=1)
    trained.plan.runs[other.name] = PlannedRun(other, None, "d")
    trained.train(other)
    assert trained.sync(names=[trained.student.name]).runs == 2
    assert other.name not in trained.runs()
    with pytest.raises(UnknownNameError, match="no run 'kd_s1'"):
        trained.sync(names=["kd_s1"])


def test_one_damaged_run_does_not_stop_the_others(trained):
    trained.paths(trained.teacher).metrics.write_text("{")
    report = trained.sync()
    assert list(report.failed) == [trained.teacher.name]
    assert "warning" in str(report)
    assert trained.curve(trained.student, "loss") == LOSSES
    trained.evaluate(trained.teacher, top1=90.0)
    assert trained.sync().failed == {}
    assert trained.curve(trained.teacher, "final.top1") == [(3, 90.0)]


def test_runs_that_have_not_begun_are_left_out(world):
    world.paths(world.teacher).root.mkdir(parents=True)
    assert world.sync().runs == 0


def test_the_embedded_store_keeps_files_too(trained, monkeypatch):
    root = trained.results.root
    paths = trained.paths(trained.student)
    (paths.root / "extra").mkdir()
    (paths.root / "extra" / "note.txt").write_text("hello")
    (root / "secret.txt").write_text("not of this run")
    for name in ("extra/note.txt", "../../secret.txt"):
        Journal(paths.journal).append("artifact", path=name)
    paths.log.write_text("x" * 6_000_000)
    paths.model.write_bytes(b"weights")
    trained.sync(uri=None)
    assert trained.results.mlflow.exists()
    kept = {
        str(f.relative_to(root / "mlartifacts")).split("artifacts/")[1]
        for f in (root / "mlartifacts").rglob("*")
        if f.is_file()
    }
    assert kept == {"spec.json", "metrics.json", "provenance.json", "extra/note.txt"}

    moved = root.with_name("moved")
    root.rename(moved)
    trained.results = Results(moved)
    assert trained.sync(uri=None).updated == 0
    trained.evaluate(trained.student, top1=1.0)
    report = trained.sync(uri=None)
    assert (report.updated, report.failed) == (1, {})
    assert "files are not copied" in str(report)
    assert not root.exists()


def test_weights_and_predictions_are_handed_over_on_request_alone(trained):
    paths = trained.paths(trained.student)
    paths.model.write_bytes(b"w" * 6_000_000)
    trained.sync()
    files = trained.client.list_artifacts(trained.of(trained.student).info.run_id)
    assert "model.safetensors" not in [f.path for f in files]
    assert trained.sync(more=["model", "predictions"]).updated == 1
    assert trained.sync(more=["model", "predictions"]).updated == 0
    files = trained.client.list_artifacts(trained.of(trained.student).info.run_id)
    assert "model.safetensors" in [f.path for f in files]
    with pytest.raises(UnknownNameError, match="no file to send 'state'"):
        trained.sync(more=["state"])


def test_a_run_in_training_hands_over_no_files_yet(world):
    world.train(world.teacher, status="running")
    with world.in_training(world.teacher):
        world.sync()
        run_id = world.of(world.teacher).info.run_id
        assert world.client.list_artifacts(run_id) == []
    world.sync()
    assert [f.path for f in world.client.list_artifacts(run_id)] == ["spec.json"]


def test_a_group_is_what_differs_in_the_seeds_alone(world):
    other = teacher_run(world.dataset, seed=1)
    students = [student_run(t, **s) for t in (world.teacher, other) for s in ({}, {"alpha": 0.5})]
    for run in (other, *students):
        world.plan.runs[run.name] = PlannedRun(run, None, "d")
    for run in (world.teacher, *students):
        world.train(run)
    world.sync()
    first, changed, second, _ = (world.of(run).data.tags["kdpipe.group"] for run in students)
    assert first == second != changed
    assert first != world.of(world.teacher).data.tags["kdpipe.group"]
    world.forget()
    world.sync(plan=False)
    assert world.of(students[0]).data.tags["kdpipe.group"] == first


def test_few_runs_are_looked_for_one_by_one_and_many_in_a_list(trained, monkeypatch):
    trained.sync()
    listed = []
    search = sync_module._Shelf._search

    def counted(self, view, asked=""):
        listed.append(asked)
        return search(self, view, asked)

    monkeypatch.setattr(sync_module._Shelf, "_search", counted)
    for few, wanted in ((5, 2), (0, 1), (1, 2)):
        monkeypatch.setattr(sync_module, "FEW", few)
        trained.forget()
        listed.clear()
        assert trained.sync().created == 0
        assert len(listed) == wanted
        assert ("" in listed) == (few < 2)


def test_files_that_cannot_be_handed_over_are_tried_again(trained, monkeypatch):
    def refuse(*_):
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(sync_module._Target, "file", refuse)
        report = trained.sync()
    assert report.notes == ["warning: files were not sent: no room"]
    assert trained.curve(trained.student, "loss") == LOSSES
    report = trained.sync()
    assert (report.updated, report.notes) == (2, [])
    assert trained.sync().updated == 0


@pytest.fixture
def closed_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def pauses(monkeypatch):
    """What is waited between attempts, in seconds; nobody waits."""
    asked = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


def test_a_dead_server_is_one_message_soon(trained, closed_port, pauses):
    with pytest.raises(TrackingError) as caught:
        trained.sync(uri=f"http://me:pass@127.0.0.1:{closed_port}")
    assert sum(pauses) < 5
    message = str(caught.value)
    assert "no MLflow server answers there" in message
    assert "nothing is lost" in message
    assert "pass@" not in message
    assert not list(trained.results.root.glob("runs/*/.synced.json"))
    assert trained.sync().created == 2


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("scheme", "no address"),
        ("folder", "no address"),
        ("garbage", "cannot be brought up to date"),
        ("nowhere", "cannot be brought up to date"),
    ],
)
def test_a_store_that_cannot_be_used(trained, kind, what, tmp_path, pauses):
    (tmp_path / "bad.db").write_text("not a database " * 100)
    uris = {
        "scheme": "nonsense://x",
        "folder": str(tmp_path / "mlruns"),
        "garbage": f"sqlite:///{tmp_path}/bad.db",
        "nowhere": "sqlite:////proc/none/mlflow.db",
    }
    with pytest.raises(TrackingError, match=what):
        trained.sync(uri=uris[kind])
    assert sum(pauses) < 5


def test_a_second_sync_waits_and_says_so(trained, monkeypatch, capsys):
    monkeypatch.setattr(sync_module, "LOCK_WAIT", 0.3)
    with open(trained.results.root / ".sync.lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ResultsError, match="still at work"):
            trained.sync(quiet=False)
    assert capsys.readouterr().err.count("waiting") == 1
    assert trained.sync().created == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_results_folder(trained):
    trained.results.root.chmod(0o500)
    try:
        with pytest.raises(ResultsError, match="not permitted"):
            trained.sync()
    finally:
        trained.results.root.chmod(0o700)


def test_nothing_is_printed(trained, capfd):
    trained.sync()
    assert capfd.readouterr() == ("", "")


def test_a_cursor_is_kept_for_each_store(trained, tmp_path):
    trained.sync()
    trained.sync(uri=None)
    cursors = read_json(trained.paths(trained.student).root / ".synced.json")
    assert len(cursors) == 2
    assert trained.sync().updated == 0
    assert trained.sync(uri=None).updated == 0
