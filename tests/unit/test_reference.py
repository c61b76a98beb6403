"""Printed numbers: what is wrong with a file of them is said with its line."""

from __future__ import annotations

import pytest

from kdpipe.core.errors import ConfigError, DataError, UnknownNameError
from kdpipe.plan.reference import COLUMNS, read_printed

KNOWN = {
    "dataset": ["cifar100"],
    "model": ["resnet56", "resnet20"],
    "recipe": ["standard", "soteacher"],
    "method": ["scratch", "kd"],
}
ROW = dict(
    zip(
        COLUMNS,
        (
            "p",
            "table1",
            "cifar100",
            "resnet56",
            "resnet20",
            "standard",
            "kd",
            "",
            "top1",
            "70.60",
            "",
            "%",
            "",
        ),
        strict=True,
    )
)


@pytest.fixture
def read(tmp_path):
    """Write the table of some lines, and read it."""
    (tmp_path / "reference").mkdir()

    def write(*lines):
        text = "\n".join([",".join(COLUMNS), *lines]) + "\n"
        (tmp_path / "reference" / "p_table1.csv").write_text(text)
        return read_printed("p_table1", tmp_path, KNOWN, "s.yaml, key 'printed'")

    return write


def line(**changes):
    return ",".join({**ROW, **changes}.values())


def test_a_row_names_its_cell_by_labels(read):
    (one,) = read(line(value="70.60", std="0.10", note="doubtful: a reason"))
    assert (one.row, one.recipe, one.teacher, one.student) == ("kd", "standard", "resnet56", "resnet20")
    assert (one.dataset, one.metric, one.value, one.std, one.doubtful) == (
        "cifar100",
        "top1",
        70.6,
        0.1,
        True,
    )


def test_variants_are_parts_of_labels(read):
    found = read(
        line(variant="T=2"),
        line(teacher_recipe='"soteacher, no-lr"'),
        line(method="teacher", student="", variant="any"),
        line(method="scratch", teacher="", teacher_recipe="", value="", note="not reported"),
    )
    assert [p.row for p in found] == ["kd, T=2", "kd", "teacher", "scratch"]
    assert found[1].recipe == "soteacher, no-lr"
    assert (found[2].student, found[3].teacher, found[3].recipe, found[3].value) == (None, None, None, None)
    assert not found[3].doubtful


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(), line(value="1")], r"printed in line 2\n.*line 3"),
        (
            [line(dataset="cifar10")],
            r"no dataset 'cifar10'.*\n.*column 'dataset'.*\n.*did you mean 'cifar100'",
        ),
        ([line(teacher="resnet65")], r"column 'teacher'.*\n.*did you mean 'resnet56'"),
        ([line(student="resnet2")], r"column 'student'.*\n.*did you mean 'resnet20'"),
        ([line(teacher_recipe='"sotaecher, no-lr"')], r"'sotaecher'.*\n.*\n.*did you mean 'soteacher'"),
        ([line(method="dk")], r"column 'method'.*\n.*did you mean 'kd'"),
        ([line(method="")], r"a value is missing\n.*column 'method'"),
        ([line(dataset="")], r"a value is missing\n.*column 'dataset'"),
        ([line(metric="top2")], r"column 'metric'"),
        ([line(unit="fraction")], r"'fraction' is not the unit of top1\n.*line 2, column 'unit'\n.*write %"),
        ([line(metric="ece")], r"'%' is not the unit of ece\n.*\n.*write count or fraction"),
        ([line(value="70,6")], r"a line has 13 values\n.*line 2"),
        ([line(value="7O.6")], r"'7O\.6' is not a number\n.*line 2"),
        ([line(std="nan")], "'nan' is not a number"),
        ([line(value="")], r"no number and no reason\n.*column 'note'"),
        ([line(table="table2")], r"of p, table2\n.*\n.*move it"),
        ([line()[:-9]], "a line has 13 values"),
        ([line(note='"open')], r"not valid CSV.*\n.*after line 1"),
    ],
)
def test_a_wrong_table_is_one_message(read, lines, message):
    with pytest.raises(ConfigError, match=message):
        read(*lines)


def test_other_columns_are_refused(read, tmp_path):
    read(line())
    file = tmp_path / "reference" / "p_table1.csv"
    file.write_text(file.read_text().replace("paper,", ""))
    with pytest.raises(ConfigError, match="the first line must name the columns"):
        read_printed("p_table1", tmp_path, KNOWN, "s.yaml")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        read_printed("p_table1", tmp_path, KNOWN, "s.yaml")


def test_an_unknown_table_names_the_nearest(read, tmp_path):
    read(line())
    with pytest.raises(UnknownNameError, match=r"s\.yaml, key 'printed'\n.*did you mean 'p_table1'"):
        read_printed("p_tabel1", tmp_path, KNOWN, "s.yaml, key 'printed'")
