"""From an image back to noise, in a way that finds the image again: each inversion gives a ``Path`` to start from.

All of them work on a batch of images at once. ``denoise(model, prompts, start=path)`` follows the path's levels and
stepper; the run's first stream is the image itself, the others are edits of it.
"""

from __future__ import annotations

from sfumato.inversion.ddim import DDIMInversion, Direct, NegativePrompt
from sfumato.inversion.edict import EDICT
from sfumato.inversion.flows import Residual, RFInversion
from sfumato.inversion.invert import invert, reconstruct
from sfumato.inversion.noise_space import EditFriendly, Noise
from sfumato.inversion.null_text import NullText
from sfumato.inversion.path import Advance, Inversion, Path, predict

__all__ = [
    "EDICT",
    "Advance",
    "DDIMInversion",
    "Direct",
    "EditFriendly",
    "Inversion",
    "NegativePrompt",
    "Noise",
    "NullText",
    "Path",
    "RFInversion",
    "Residual",
    "invert",
    "predict",
    "reconstruct",
]
