"""Which device to compute on, from the word a person gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    import torch


def check(name: str) -> None:
    """Raise ``SfumatoError`` for a word that ``choose`` does not know."""
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise SfumatoError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N, mps")


def choose(name: str = "auto") -> torch.device:
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises ``SfumatoError`` for any other word and for a device that this machine does not have.
    """
    import torch

    name = str(name)
    check(name)
    here = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    here += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return torch.device("cuda" if "cuda:0" in here else "mps" if "mps" in here else "cpu")
    kind, _, index = name.partition(":")
    if name != "cpu" and (name if index else "cuda:0" if kind == "cuda" else name) not in here:
        raise SfumatoError(f"there is no device {name!r} here; this machine has: {', '.join(here)}")
    return torch.device(name)
