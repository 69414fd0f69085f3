"""Heads that were learned, from their files: by any method of the index, on the features of any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sfumato.errors import unknown
from sfumato.learning.heads import Head
from sfumato.methods import index


def known(name: str) -> Any:
    """The class of a method that reads or learns, by its name. ``SfumatoError`` that lists those there are."""
    entries = [e for e in index.METHODS if (e.group in index.READING or e.head) and not e.is_function]
    homes = {(e.head or e.home).partition(":")[2]: e for e in entries}
    if name not in homes:
        raise unknown("method of a head", name, homes)
    return homes[name].learner


def load(path: str | Path, device: torch.device | str = "cpu") -> Head:
    """Read a head. Raises ``SfumatoError`` for a file that is damaged, or none; see ``Head.load``."""
    return Head.load(path, known, device)
