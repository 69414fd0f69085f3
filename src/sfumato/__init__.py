"""Sfumato: edit, control, read and lift with pretrained 2D diffusion models.

Importing it costs nothing: submodules come when they are named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from sfumato import stilllife
    from sfumato.backbones.load import load
    from sfumato.core.denoising import denoise
    from sfumato.core.guidance import cfg
    from sfumato.inversion import invert
    from sfumato.media.images import read_image

__version__ = "0.1.0"
__all__ = ["SfumatoError", "__version__", "cfg", "denoise", "invert", "load", "read_image", "stilllife"]
_HOMES = {
    "load": "backbones.load",
    "denoise": "core.denoising",
    "cfg": "core.guidance",
    "read_image": "media.images",
    "invert": "inversion",
}


def __getattr__(name: str) -> Any:
    if name == "stilllife":
        return importlib.import_module("sfumato.stilllife")
    if name in _HOMES:
        from sfumato.io.sparing import sparing

        with sparing():
            return getattr(importlib.import_module(f"sfumato.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'sfumato' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
