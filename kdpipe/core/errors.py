"""Every error kdpipe raises on purpose, as one tree.

KdpipeError                 something went wrong that kdpipe foresaw (exit code 1)
├── UserError               the user can mend it: settings, files, machine (exit code 2)
│   ├── ConfigError         a study, protocol or setting is wrong
│   │   └── UnknownNameError    no plug-in, file or key of that name
│   ├── DataError           a data set is missing or unreadable
│   ├── CheckpointError     weights or state are missing, truncated or of another model
│   ├── DeviceError         the asked-for device is not there
│   ├── ResultsError        the results folder cannot be read or written
│   └── TrackingError       the tracking store cannot be reached or used
├── PluginError             a plug-in breaks its interface (for its author)
└── Interrupted             stopped by a signal after saving state (exit code 75: run it again)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 60  # names that a message lists at most


class KdpipeError(Exception):
    """Base of all errors that kdpipe raises on purpose."""

    exit_code = 1


class UserError(KdpipeError):
    """A mistake the user can mend; shown as one message without a traceback.

    Args:
        what: what is wrong, in one sentence.
        where: the file and key (or path) where it is wrong.
        fix: what to change.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if fix:
            lines.append(f"  fix:   {fix}")
        super().__init__("\n".join(lines))

    def at(self, where: str) -> UserError:
        """The same error with its place filled in, for callers who know the file."""
        place = f"{where}: {self.where}" if self.where else where
        return type(self)(self.what, where=place, fix=self.fix)


class ConfigError(UserError):
    """A study, a protocol or a setting is wrong."""


class UnknownNameError(ConfigError):
    """No plug-in, file or key has this name."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str], *, where: str | None = None) -> UnknownNameError:
        """Build the error for a name that is not among `known`, with the nearest that is."""
        known = sorted(known)
        near = nearest(name, known)
        listed = ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
        fix = f"did you mean '{near}'?" if near else f"known: {listed or 'none'}"
        return cls(f"there is no {kind} '{name}'", where=where, fix=fix)


class DataError(UserError):
    """A data set is missing or unreadable."""


class CheckpointError(UserError):
    """Weights, predictions or state are missing, truncated or belong to something else."""


class DeviceError(UserError):
    """The asked-for device is not there."""


class ResultsError(UserError):
    """The results folder cannot be read or written."""


class TrackingError(UserError):
    """The tracking store cannot be reached or used; results are not touched by that."""


class PluginError(KdpipeError):
    """A plug-in breaks its interface; the message is for its author."""


class Interrupted(KdpipeError):
    """A signal stopped the run after its state was saved; the same command continues it."""

    exit_code = 75


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`, or None when none is near."""
    by_folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[close[0]] if close else None
