"""Which banks can take a teacher's place: does a method read nothing of it but logits, and of which views?"""

from __future__ import annotations

import torch

from kdpipe.api import Batch, Method, Objective
from kdpipe.core.specs import BankSpec, RunSpec, streams


def banks_for(spec: RunSpec, objective: Objective) -> tuple[BankSpec, ...]:
    """The banks that a student could learn from instead of its teacher, in the order of its passes.

    Args:
        spec: the student.
        objective: its method, with its settings.

    Returns:
        None at all for a run that has no teacher, whose teacher changes, or whose method reads more of the
        teacher than the logits of views that batches carry as they are.
    """
    ref, protocol = spec.teacher, spec.protocol
    if (
        not isinstance(objective, Method)
        or ref is None
        or ref.anchors
        or ref.part
        or not _logits_only(objective)
    ):
        return ()
    made = streams(protocol.augmentation, objective.views)
    return tuple(
        BankSpec(
            data=spec.data,
            teacher=ref,
            view=view,
            augmentation=made[view],
            batch_size=protocol.batch_size,
            epochs=protocol.epochs,
            precision=protocol.taught_in,
            compile=protocol.compile is True,
            seed=spec.seed,
        )
        for view in _views(objective)
    )


def _logits_only(method: Method) -> bool:
    """Whether a method is told nothing of its teacher but logits, in every epoch of the protocol."""
    wish = method.taps()
    more = wish.teacher or wish.batch_statistics or method.part() is not None
    return method.teacher and not (more or method.peers() or method.first_stage())


def _views(method: Method) -> tuple[str, ...]:
    """The streams whose images a method passes through the networks; none where it changes any image."""
    place = torch.zeros(2, dtype=torch.int64)
    images = {name: torch.zeros(2, 3, 8, 8) for name in streams((), method.views)}
    first, *further = images.values()
    try:
        passes = method.inputs(Batch(first, place, place, tuple(further)))
    except Exception:  # it reads what only its `build` makes
        return ()
    names = [next((name for name, own in images.items() if own is seen), None) for seen in passes]
    return () if None in names else tuple(name for name in names if name)
