"""Which device a run trains on."""

from __future__ import annotations

import torch

from kdpipe.core.errors import DeviceError


def pick_device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        DeviceError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise DeviceError(f"'{name}' is no device", fix="use auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise DeviceError(
                "a GPU was asked for and none was found",
                fix="set device to auto or cpu, or run where there is a GPU",
            )
        if number and int(number) >= count:
            raise DeviceError(
                f"GPU {number} was asked for; there are {count}", fix=f"use cuda:0 .. cuda:{count - 1}"
            )
    return torch.device(name)
