"""Files are whole or absent, and a failed write is one clear message."""

import json

import pytest

from kdpipe.core.errors import ResultsError
from kdpipe.core.files import atomic, read_json, write_error, write_json, write_text


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def dies():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        dies()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_is_a_file_is_one_message(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(ResultsError, match="cannot write"):
        write_json(tmp_path / "results" / "x.json", {})


@pytest.mark.parametrize(
    ("number", "words"), [(28, "disk is full"), (13, "not permitted"), (30, "read-only")]
)
def test_the_reason_is_named(tmp_path, number, words):
    assert words in str(write_error(tmp_path, OSError(number, "x")))


def test_broken_json_says_which_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ResultsError, match=r"x\.json"):
        read_json(tmp_path / "x.json")
    with pytest.raises(ResultsError, match="missing"):
        read_json(tmp_path / "y.json")


def test_what_a_kill_left_goes_and_what_is_in_use_stays(tmp_path):
    path = tmp_path / "a.json"
    left, other = tmp_path / ".a.json.dead.tmp", tmp_path / ".b.json.dead.tmp"
    for file in (left, other):
        file.write_text("half")
    (tmp_path / ".a.json.old.tmp").mkdir()
    with atomic(path) as first:
        first.write_text("1")
        with atomic(path) as second:
            second.write_text("2")
            assert first.exists()
        assert not left.exists()
    assert sorted(f.name for f in tmp_path.iterdir()) == [other.name, path.name]
    assert path.read_text() == "1"


@pytest.mark.parametrize(
    "value", [{"b": 1.5, "a": {"sealed": "x"}}, {"sealed": "own"}, {}, [1], {10: 1, 9: 2}]
)
def test_json_comes_back_and_a_changed_byte_is_found(tmp_path, value):
    path = tmp_path / "a.json"
    write_json(path, value)
    assert read_json(path) == json.loads(json.dumps(value))
    content = path.read_bytes()
    places = range(len(content) if value and isinstance(value, dict) else 0)
    flipped = [content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] for place in places]
    for changed in (*flipped, *(content[:place] for place in places)):
        path.write_bytes(changed)
        try:
            assert read_json(path) == json.loads(json.dumps(value))
        except ResultsError as error:
            assert str(path) in str(error)  # noqa: PT017 (a change of a space harms nothing)
