"""What a recipe adds to a step of training a teacher: its time as a multiple of the standard recipe's.

All recipes train the same network, from the same weights, on the same images (noise of CIFAR's size; the
time does not depend on what they show). Their slices are interleaved, so that whatever else the machine
does hits all alike. The figures that matter are the ratios: of each slice to the standard recipe's of the
same turn, and of these the median.

    python -m benchmarks.recipes --models resnet8x4
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.step import EngineLoop, measure
from kdpipe.api import Split
from kdpipe.core import registry
from kdpipe.core.paths import RunPaths
from kdpipe.core.specs import DataSpec, Part, Protocol, Run, RunSpec
from kdpipe.engine.device import pick_device
from kdpipe.engine.prepare import Prepared
from kdpipe.engine.train import Trainer
from kdpipe.plan.config import read_protocol

BASELINE = "standard"
PRINTED = {"soteacher": "about 1.05 (SoTeacher, section 5.2)"}


def noise(samples: int, classes: int = 100) -> Prepared:
    """Images without content, as a data set."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (samples, 32, 32, 3), dtype=np.uint8)
    split = Split(images, np.arange(samples, dtype=np.int64) % classes)
    return Prepared("noise", classes, (3, 32, 32), (0.5,) * 3, (0.25,) * 3, split, split, {})


def loop(
    recipe: str, model: str, prepared: Prepared, protocol: Protocol, folder: Path, device: torch.device
) -> EngineLoop:
    """The training of a network under a recipe, in `folder`, taken a few steps at a time."""
    plugin = registry.recipes.get(recipe)
    spec = RunSpec(
        data=DataSpec(dataset="noise", revision=1),
        model=Part(name=model, revision=1),
        protocol=protocol,
        recipe=Part(name=recipe, revision=1, settings=plugin.Config().model_dump(mode="json")),
        seed=0,
    )
    run = Run(spec=spec, label=recipe, protocol="crd240", pair=(model, None))
    trainer = Trainer(run, RunPaths(folder), prepared, (), device)
    trainer.objective.memory = trainer.memory.open(1)
    return EngineLoop(trainer)


def ratios(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Each recipe's time as a multiple of the standard recipe's, turn by turn."""
    return {
        name: [a / b for a, b in zip(times, seconds[BASELINE], strict=True)]
        for name, times in seconds.items()
        if name != BASELINE
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=["soteacher", "micc"])
    parser.add_argument("--models", nargs="+", default=["resnet8x4", "resnet32x4"])
    parser.add_argument("--slices", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5, help="steps in a slice")
    parser.add_argument("--samples", type=int, default=2000, help="training images")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()

    torch.set_num_threads(asked.threads)
    device = pick_device(asked.device)
    protocol = read_protocol("crd240", Path("config")).settings.model_copy(
        update={"precision": asked.precision}
    )
    prepared = noise(asked.samples)
    print(f"{device.type}, {asked.precision}, batch {protocol.batch_size}, {asked.threads} threads,")
    print(f"{asked.slices} slices of {asked.steps} steps; torch {torch.__version__}, {platform.machine()}")
    print(f"{'network':<14}{'recipe':<12}{'ms a step':>10}{'x standard':>12}{'quartiles':>14}  printed")
    for model in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            racers = {
                name: loop(name, model, prepared, protocol, Path(folder) / name, device)
                for name in (BASELINE, *asked.recipes)
            }
            rates = measure(racers, asked.slices, asked.steps, protocol.batch_size)
        seconds = {name: [protocol.batch_size / rate for rate in found] for name, found in rates.items()}
        milliseconds = 1000 * statistics.median(seconds[BASELINE])
        print(f"{model:<14}{BASELINE:<12}{milliseconds:>10.1f}{1:>12.2f}")
        for name, found in ratios(seconds).items():
            low, middle, high = statistics.quantiles(found, n=4)
            milliseconds = 1000 * statistics.median(seconds[name])
            print(
                f"{model:<14}{name:<12}{milliseconds:>10.1f}{middle:>12.2f}{low:>8.2f}-{high:.2f}"
                f"  {PRINTED.get(name, 'not stated')}"
            )


if __name__ == "__main__":
    main()
