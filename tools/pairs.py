"""docs/plugins/pairs.md: which method distils which pair of networks of the five papers."""

from __future__ import annotations

from kdpipe.api import Method, ModelSpec
from kdpipe.api.model import meant
from kdpipe.core.registry import methods, models

PAGE = "docs/plugins/pairs.md"
WRN, SHUFFLE = ("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "shufflenetv2")
RESNET, RESNET_34 = ("resnet34", "resnet18"), ("resnet50", "resnet34")
MICC = (RESNET_34, WRN, ("vgg13", "vgg8"), ("resnet50", "mobilenet"), ("vgg13", "mobilenet"), SHUFFLE)
PRINTED = {  # data set -> teacher and student, as the papers print them, homogeneous pairs first
    "cifar10": (
        RESNET_34,  # MICC, Table 3
        WRN,
        ("vgg13", "vgg8"),
        ("resnet50", "mobilenetv2"),
        ("vgg13", "mobilenetv2"),
        SHUFFLE,
        ("resnet50", "resnet50"),  # self-distillation, Figures 5 and 7
        ("resnet18", "resnet18"),  # Figures 6 and 8
    ),
    "cifar100": (
        ("resnet56", "resnet20"),  # DHKD, Table 1
        ("resnet110", "resnet32"),
        ("resnet32x4", "resnet8x4"),
        ("wrn_40_2", "wrn_40_1"),
        ("resnet32x4", "shufflenetv1"),  # DHKD, Table 2
        ("wrn_40_2", "shufflenetv1"),
        ("resnet32x4", "shufflenetv2"),  # also SoTeacher, Table 1
        *MICC,  # Tables 1 and 2, of which DHKD and SoTeacher have the same
    ),
    "tiny_imagenet": (RESNET, *MICC),  # SoTeacher, Table 2; MICC, Tables 1 and 2
    "imagenet": (RESNET, ("resnet50", "mobilenet")),  # DHKD, Tables 3 and 4
    "cifar10_two_class": (("two_layer_100", "two_layer_20"),),  # the kernel regime, Section 4
}
TITLES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny ImageNet",
    "imagenet": "ImageNet",
    "cifar10_two_class": "CIFAR-10, two classes",
}
TEXT = """\
# Methods and pairs

{made}

Which method, at its default settings, distils which pair of the five papers; a dash has its reason below.
A combination (`kd+fitnet`) distils what each of its methods does.

`tests/contract/test_pairs.py` tests each cell: it builds the method for the two networks and checks that its
terms and their gradients are finite, on random images of 32 pixels (64 for ImageNet's networks,
and again for VGGs, whose maps then differ).
{tables}

## Reasons

{notes}
"""
Pair = tuple[ModelSpec, ModelSpec]


def pairs(dataset: str) -> list[Pair]:
    """Teacher and student of each of a data set's pairs."""
    specs = [spec for _, spec in models.items()]
    found = []
    for names in PRINTED[dataset]:
        teacher, student = (meant(name, dataset, specs) for name in names)
        assert teacher is not None, names
        assert student is not None, names
        found.append((teacher, student))
    return found


def distinct() -> dict[str, Pair]:
    """`teacher-student` -> the pair, each once."""
    return {f"{t.name}-{s.name}": (t, s) for dataset in PRINTED for t, s in pairs(dataset)}


def reason(kind: type[Method], teacher: ModelSpec, student: ModelSpec) -> str | None:
    """Why a method does not distil a pair, or None."""
    return kind().skip(student, teacher)


def files(made: str, names: list[str]) -> dict[str, str]:
    """The page, with a row for each of the named methods."""
    notes: dict[str, int] = {}
    tables = "\n".join(table(dataset, names, notes) for dataset in PRINTED)
    listed = [f"{number}. {why}" for why, number in notes.items()]
    return {
        PAGE: TEXT.format(
            made=made, tables=tables, notes="\n".join(listed) or "None: every method distils every pair."
        )
    }


def table(dataset: str, names: list[str], notes: dict[str, int]) -> str:
    """A table of methods by pairs; reasons that are new are added to `notes` with their number."""
    columns = pairs(dataset)
    head = [f"{t.name} →<br>{s.name}" for t, s in columns]
    lines = [
        "",
        f"## {TITLES[dataset]}",
        "",
        f"| method | {' | '.join(head)} |",
        "|---" * (len(head) + 1) + "|",
    ]
    for name in names:
        cells = [cell(reason(methods.get(name), *pair), notes) for pair in columns]
        lines.append(f"| [{name}](methods/{name}.md) | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(why: str | None, notes: dict[str, int]) -> str:
    """`trains`, or a dash with the number of the reason."""
    return "trains" if why is None else f"– ({notes.setdefault(why, len(notes) + 1)})"
