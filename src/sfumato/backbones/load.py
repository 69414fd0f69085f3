"""``load``: the built-in model by its name, or any diffusers folder."""

from __future__ import annotations

from typing import Any

import torch

from sfumato.backbones import Backbone
from sfumato.device import choose


def load(
    name: str = "stilllife", *, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32
) -> Backbone:
    """A model by name, or a diffusers folder of Stable Diffusion's kind. Nothing is downloaded or unpickled.

    Raises ``SfumatoError`` for an unknown name, a folder that holds no such model, a device that is not there.
    """
    from sfumato.backbones.unet import UNet
    from sfumato.stilllife import weights

    place = choose(device) if isinstance(device, str) else device
    pipe: Any = weights.pipeline(name, place, dtype)
    return UNet(name, pipe.components)
