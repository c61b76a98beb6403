"""Files are whole or absent, and a failed write is one clear message."""

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
