"""Data sets in the layouts of Tiny ImageNet and ImageNet, from a folder of files to a table."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

pytestmark = pytest.mark.slow

CLASSES = ["n01443537", "n01629819", "n01641577"]


def picture(label, size):
    """A noisy picture whose colour tells its class."""
    rng = np.random.default_rng([label, *size])
    values = rng.integers(0, 90, (size[1], size[0], 3))
    values[..., label] += 150
    return Image.fromarray(values.astype(np.uint8))


def tiny_imagenet_shaped(folder):
    """Tiny ImageNet's folder in miniature: JPEG of 64 pixels, one of them grey."""
    root = folder / "mine"
    for label, name in enumerate(CLASSES):
        (root / f"train/{name}/images").mkdir(parents=True)
        (root / f"train/{name}/{name}_boxes.txt").write_text("")
        for i in range(8):
            image = picture(label, (64, 64)).convert("L" if (label, i) == (0, 0) else "RGB")
            image.save(root / f"train/{name}/images/{name}_{i}.JPEG")
    (root / "val/images").mkdir(parents=True)
    lines = []
    for i in range(9):
        picture(i % 3, (64, 64)).save(root / f"val/images/val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{CLASSES[i % 3]}\t0\t0\t62\t62\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    return {"format": "folder", "size": 64, "test": "val", "num_classes": 3}


def imagenet_shaped(folder):
    """A `train/`, `val/` tree of JPEG files of many sizes; networks see 32 pixels."""
    for label, name in enumerate(CLASSES):
        for split, count in (("train", 8), ("val", 3)):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                size = (40 + 7 * i, 60 - 3 * i)
                picture(label, size).save(folder / split / name / f"{name}_{i}.JPEG")
    return {"format": "folder", "size": 32, "test": "val", "on_disk": True}


def set_up(project, described, augmentation):
    """Describe the data set `mine`, let the protocol augment, and study it."""
    (project.root / "config/datasets").mkdir()
    (project.root / "config/datasets/mine.yaml").write_text(yaml.safe_dump(described))
    protocol = project.root / "config/protocols/tiny.yaml"
    values = yaml.safe_load(protocol.read_text())
    values["settings"] |= {"batch_size": 8, "augmentation": augmentation}
    protocol.write_text(yaml.safe_dump(values))
    project.study(dataset="mine", methods=["kd"], curves=[], settings={})


def check_results(project):
    """Everything ran to its end and the table holds a number."""
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    (meta,) = project.root.glob("results/data/mine-*/meta.json")
    facts = json.loads(meta.read_text())
    assert facts["sizes"] == {"train": 24, "test": 9}
    assert facts["classes"] == CLASSES
    runs = list(project.root.glob("results/runs/*/status.json"))
    assert len(runs) == 2
    assert {json.loads(status.read_text())["status"] for status in runs} == {"finished"}
    table = pd.read_csv(project.root / "results/studies/tiny/table.csv")
    assert 0 <= table[(table.row == "kd") & (table.metric == "top1")]["mean"].item() <= 100


def test_tiny_imagenets_layout_from_files_to_a_table(project):
    source = project.root / "data" / "mine"
    source.mkdir(parents=True)
    steps = [{"rotation": {"degrees": 20}}, {"crop": {"padding": 8}}, {"flip": {}}]
    set_up(project, tiny_imagenet_shaped(source), steps)
    check_results(project)


def test_imagenets_layout_from_files_to_a_table(project):
    source = project.root / "data" / "mine"
    set_up(project, imagenet_shaped(source), [{"resized_crop": {}}, {"flip": {}}])
    check_results(project)
    assert not list(project.root.glob("results/data/mine-*/*_images.npy"))

    broken = source / "train" / CLASSES[0] / f"{CLASSES[0]}_3.JPEG"
    broken.write_bytes(b"broken")
    project.study(dataset="mine", methods=["kd"], curves=[], settings={}, seeds=[1])
    done = project.snakemake()
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert "an image cannot be decoded" in told
    assert broken.name in told
    assert "Traceback" not in told


def test_a_data_set_that_is_not_there_stops_before_any_training(project):
    (project.root / "config/datasets").mkdir()
    (project.root / "config/datasets/mine.yaml").write_text("{format: folder, size: 32}")
    project.study(dataset="mine")
    done = project.snakemake()
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert "the folder of mine is not there" in told
    assert "train/CLASS/IMAGE and test/CLASS/IMAGE" in told
    assert "Traceback" not in told
    assert not (project.root / "results/runs").exists()
