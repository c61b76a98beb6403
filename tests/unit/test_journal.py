"""The journal: whole lines or none, whatever happens to the process, the disk or the file."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.tracking import journal
from kdpipe.tracking.journal import Entry, Journal, decode, encode, read
from kdpipe.tracking.observer import JournalObserver


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "journal.jsonl"


def filled(path, epochs=3):
    book = Journal(path)
    book.append("params", values={"lr": 0.1, "milestones": (1, 2)})
    for epoch in range(1, epochs + 1):
        book.append("metrics", step=epoch, values={"loss": 1 / epoch})
    return book


def steps(path):
    return [e.data["step"] for e in read(path) if e.kind == "metrics"]


def test_what_is_appended_is_read_back(path):
    book = filled(path)
    book.append("tags", values={"slurm_job": "7"})
    book.append("artifact", path="extra/figure.svg")
    book.append("status", status="finished")
    entries = read(path)
    assert [e.kind for e in entries] == ["params", *["metrics"] * 3, "tags", "artifact", "status"]
    assert entries[0].data == {"values": {"lr": 0.1, "milestones": [1, 2]}}
    assert entries[1].data == {"step": 1, "values": {"loss": 1.0}}
    assert entries[-1].data == {"status": "finished"}
    assert [e.time for e in entries] == sorted(e.time for e in entries)
    assert entries[0].time > 1_700_000_000_000


def test_no_file_is_no_entries(path):
    assert read(path) == []


@given(st.dictionaries(st.text(), st.floats(), max_size=5), st.integers(0, 10**6), st.integers(0, 2**45))
def test_every_float_survives(values, step, time):
    entry = Entry(time, "metrics", {"step": step, "values": values})
    line = encode(entry)
    assert line.count(b"\n") == 1
    assert repr(decode(line)) == repr(entry)  # repr: nan is not nan


@given(st.data())
def test_a_damaged_line_is_never_taken_for_a_sound_one(data):
    line = encode(Entry(1, "metrics", {"step": 3, "values": {"loss": 0.25, "crc": 1.0}}))[:-1]
    place = data.draw(st.integers(0, len(line) - 1))
    cut = line[:place]
    other = bytearray(line)
    other[place] ^= data.draw(st.integers(1, 255))
    assert decode(cut) is None
    assert decode(bytes(other)) is None


def test_a_torn_last_line_is_passed_over_and_the_next_one_is_not_lost(path):
    filled(path)
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        assert steps(path) == [1, 2]
        Journal(path).append("metrics", step=9, values={"loss": 0.0})
        # a line that lacks only its newline is whole again once the next one starts
        assert steps(path) == ([1, 2, 3, 9] if cut == 1 else [1, 2, 9])


def test_resuming_drops_the_epochs_that_will_be_repeated(path):
    book = filled(path, epochs=5)
    book.append("status", status="interrupted")
    path.write_bytes(path.read_bytes() + b'{"torn')
    book.truncate_after(3)
    assert steps(path) == [1, 2, 3]
    assert [e.kind for e in read(path)].count("status") == 1
    book.append("metrics", step=4, values={"loss": 0.5})
    assert steps(path) == [1, 2, 3, 4]
    book.truncate_after(0)
    assert steps(path) == []


def test_nothing_to_drop_leaves_the_file_alone(path):
    book = filled(path)
    before = path.stat()
    book.truncate_after(3)
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    Journal(path.with_name("none.jsonl")).truncate_after(3)
    assert not path.with_name("none.jsonl").exists()


@pytest.mark.parametrize("failure", ["full", "partial", "folder"])
def test_a_failing_disk_costs_one_warning_and_no_training(path, failure, monkeypatch, capsys):
    book = filled(path)
    write = os.write
    if failure == "full":

        def refuse(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(journal.os, "write", refuse)
    elif failure == "partial":
        monkeypatch.setattr(journal.os, "write", lambda handle, line: write(handle, line[:10]))
    else:
        book = Journal(path / "below" / "a" / "file")
    for step in (4, 5):
        book.append("metrics", step=step, values={"loss": 0.0})
    book.truncate_after(1)
    err = capsys.readouterr().err
    assert err.count("warning") == 1
    assert "the training goes on" in err
    assert steps(path) == [1, 2, 3]


def test_appends_of_two_writers_never_mix(path):
    a, b = Journal(path), Journal(path)
    for step in range(20):
        (a if step % 2 else b).append("metrics", step=step, values={"x" * 500: 1.0})
    assert steps(path) == list(range(20))


def test_an_observer_records_a_training_and_its_resume(path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    first = JournalObserver(path)
    first.started(0)
    for epoch in (1, 2):
        first.epoch_done({"epoch": epoch, "loss": 1.0})
    again = JournalObserver(path)  # killed; the state holds one epoch
    again.started(1)
    again.epoch_done({"epoch": 2, "loss": 1.0})
    again.ended("finished")
    assert steps(path) == [1, 2]
    assert [e.data["status"] for e in read(path) if e.kind == "status"] == ["running", "running", "finished"]
    assert {"values": {"slurm_job": "42"}} in [e.data for e in read(path)]
