"""Identity: equal settings give equal ids, different ones do not."""

import json
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.core import specs
from kdpipe.core.errors import ConfigError
from kdpipe.core.ids import canonical, digest, slug
from kdpipe.core.specs import DataSpec, Frozen, Part, Protocol, Run, RunSpec, TeacherRef, identity

finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def make_run(**changes):
    spec = {
        "data": DataSpec(dataset="digits", revision=1),
        "model": Part(name="resnet8", revision=1),
        "protocol": Protocol(lr=0.05, epochs=3, batch_size=8),
        "method": Part(name="kd", revision=1, settings={"temperature": 4.0, "alpha": 0.9}),
        "teacher": TeacherRef(run="abc"),
        "seed": 0,
    }
    later = changes.pop("later", {})
    return Run(spec=RunSpec(**{**spec, **changes}), label="x", protocol="p", later=later)


@given(values)
def test_canonical_is_json_that_reads_back(value):
    assert json.loads(canonical(value)) == json.loads(json.dumps(value))


@given(st.dictionaries(st.text(max_size=5), st.integers(), min_size=2, max_size=6))
def test_key_order_does_not_matter(mapping):
    assert digest(mapping) == digest(dict(reversed(mapping.items())))


def test_100_and_100_point_0_are_the_same():
    assert digest({"beta": 100}) == digest({"beta": 100.0})
    assert digest({"beta": 100}) != digest({"beta": 100.5})
    assert digest({"flag": True}) != digest({"flag": 1})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_without_a_place_in_json_are_refused(bad):
    with pytest.raises(ConfigError, match="not a finite number"):
        canonical({"lr": bad})


def test_slug_is_safe_in_a_file_name():
    assert slug("a b/c:d") == "a_b_c_d"
    assert slug("///") == "x"


def test_labels_stay_out_of_the_id():
    run = make_run()
    other = run.model_copy(
        update={"label": "y", "protocol": "q", "scale": "smoke", "sources": {"alpha": "study"}}
    )
    assert run.id == other.id
    assert run.name != other.name


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"method": Part(name="kd", revision=2, settings={"temperature": 4.0, "alpha": 0.9})},
        {"method": Part(name="kd", revision=1, settings={"temperature": 2.0, "alpha": 0.9})},
        {"model": Part(name="resnet14", revision=1)},
        {"teacher": TeacherRef(run="abd")},
        {"teacher": TeacherRef(run="abc", epoch=3)},
        {"protocol": Protocol(lr=0.01, epochs=3, batch_size=8)},
        {"data": DataSpec(dataset="digits", revision=2)},
    ],
)
def test_whatever_changes_the_numbers_changes_the_id(change):
    assert make_run(**change).id != make_run().id


def test_swapped_values_are_told_apart():
    a = make_run(method=Part(name="kd", revision=1, settings={"x": 1, "y": 2}))
    b = make_run(method=Part(name="kd", revision=1, settings={"x": 2, "y": 1}))
    assert a.id != b.id


def test_a_setting_added_later_leaves_old_ids_alone():
    old = make_run()
    settings = {"temperature": 4.0, "alpha": 0.9, "new": False}
    new = make_run(method=Part(name="kd", revision=1, settings=settings), later={"new": False})
    used = make_run(
        method=Part(name="kd", revision=1, settings={**settings, "new": True}), later={"new": False}
    )
    assert new.id == old.id
    assert used.id != old.id


def test_ids_of_the_first_release_stand():
    """A literal from the day of the release: whatever is added to specs later must leave it alone."""
    assert make_run(engine=1).id == "3771083e871c"


class Inner(Frozen):
    LATER: ClassVar[frozenset[str]] = frozenset({"new"})
    old: int = 1
    new: tuple[int, ...] = ()


class Outer(Frozen):
    LATER: ClassVar[frozenset[str]] = frozenset({"other"})
    inner: Inner = Inner()
    other: str | None = None


def test_a_field_added_later_stays_out_while_at_its_default():
    assert identity(Outer()) == {"inner": {"old": 1}}
    assert identity(Outer(inner=Inner(new=(2,)))) == {"inner": {"old": 1, "new": [2]}}
    assert identity(Outer(other="x")) == {"inner": {"old": 1}, "other": "x"}
    assert Outer(other="x").model_dump()["inner"] == {"old": 1, "new": ()}  # stored in full


def test_later_fields_exist_and_have_defaults():
    for value in vars(specs).values():
        if isinstance(value, type) and issubclass(value, Frozen):
            assert value.model_fields.keys() >= value.LATER, value
            assert not [name for name in value.LATER if value.model_fields[name].is_required()], value
