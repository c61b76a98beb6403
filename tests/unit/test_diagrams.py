"""Diagrams: the files, their data, and that the same data give the same bytes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kdpipe.evaluation import calibration, geometry
from kdpipe.tables import diagrams


def network(seed, scale=1.0, classes=10, n=400):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return scale * (rng.normal(size=(n, classes)) + 2 * np.eye(classes)[labels]), labels


def reliabilities():
    return {
        "teacher": calibration.reliability(*network(0, 3)),
        "student": calibration.reliability(*network(1)),
        "equal mass": calibration.reliability(*network(1), bins=8, equal_mass=True),
    }


def embeddings():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 10
    positions = np.arange(120)
    points = 5 * rng.normal(size=(10, 2))[labels] + rng.normal(size=(120, 2))
    return {
        name: geometry.Embedding(k * points, labels, positions) for k, name in ((1, "one"), (-1, "other"))
    }


def differences():
    teacher, _ = network(0)
    return {
        name: geometry.correlation_difference(network(seed)[0], teacher)
        for seed, name in ((1, "KD"), (0, "self"))
    }


FIGURES = [
    (diagrams.draw_reliability, reliabilities, 15 + 15 + 8),
    (diagrams.draw_tsne, embeddings, 2 * 120),
    (diagrams.draw_correlation, differences, 2 * 100),
]


@pytest.mark.parametrize(("draw", "data", "rows"), FIGURES)
def test_a_figure_its_data_and_the_same_bytes_again(tmp_path, draw, data, rows):
    paths = draw(data(), tmp_path / "one")
    assert [path.name for path in paths] == ["one.svg", "one.png", "one.csv"]
    again = draw(data(), tmp_path / "two")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    table = pd.read_csv(paths[2])
    assert len(table) == rows
    assert table["network"].unique().tolist() == list(data())
    assert b"<dc:date>" not in paths[0].read_bytes()


def test_the_data_of_the_reliability_diagram(tmp_path):
    found = reliabilities()
    table = pd.read_csv(diagrams.draw_reliability(found, tmp_path / "figure")[2])
    own = table[table["network"] == "teacher"]
    assert own["count"].sum() == 400
    gaps = own["count"] * (own["accuracy"] - own["confidence"]).abs()
    assert gaps.sum() / 400 == pytest.approx(found["teacher"].error)


def test_the_data_of_the_correlation_figure(tmp_path):
    table = pd.read_csv(diagrams.draw_correlation(differences(), tmp_path / "figure")[2])
    matrix = table[table["network"] == "KD"].pivot(index="row", columns="column", values="difference")
    np.testing.assert_allclose(matrix.to_numpy(), differences()["KD"])
    assert not table[table["network"] == "self"]["difference"].any()


def test_too_many_classes_are_refused(tmp_path):
    many = geometry.Embedding(np.zeros((11, 2)), np.arange(11), np.arange(11))
    with pytest.raises(ValueError, match="11 classes"):
        diagrams.draw_tsne({"all": many}, tmp_path / "figure")


def test_degenerate_data_are_drawn(tmp_path):
    one = calibration.reliability(np.zeros((1, 3)), np.array([0]))
    empty = calibration.reliability(np.zeros((2, 3)), np.array([0, 1]), equal_mass=True)
    point = geometry.Embedding(np.zeros((1, 2)), np.array([4]), np.array([0]))
    assert diagrams.draw_reliability({"one": one, "few": empty}, tmp_path / "reliability")
    names = [*"abcdefgh"]
    svg = diagrams.draw_tsne({"one": point}, tmp_path / "tsne", names)[0]
    assert svg.exists()
    assert diagrams.draw_correlation({"none": np.zeros((1, 1))}, tmp_path / "correlation")
