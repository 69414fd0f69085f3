"""Sfumato: edit, control, read and lift with pretrained 2D diffusion models.

Importing it costs nothing: submodules come when they are named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from sfumato import stilllife

__version__ = "0.1.0"
__all__ = ["SfumatoError", "__version__", "stilllife"]


def __getattr__(name: str) -> Any:
    if name == "stilllife":
        return importlib.import_module("sfumato.stilllife")
    raise AttributeError(f"module 'sfumato' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
