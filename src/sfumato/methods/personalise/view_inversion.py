"""View-dependent inversion (ViewNeTI, Burgess et al. 2023, arXiv 2309.07986): where a thing is seen from is a word too.

One vector for all views of a thing mixes them: backs get faces (Jambon 2023, section 6.1). Here two mappers are learned
together, one of time, layer and camera, whose vector is the view's, and one of time and layer, whose vector is the
thing's; only the first knows the camera, so what is common to all views is left to the second. The word stands for
both, the view's first: ``concept.seen_from(90, 20)`` is the ordinary concept of one view, which any prompt may hold.

Defaults: the authors' configuration, 10000 steps of 3 pictures three times, at a rate of 1e-3 times 9, 32 waves, 64
hidden numbers, a bypass five times as long as what it is added to, no dropout; 0.5 for cameras is that of both their
training files (2.0 stands in the code). Cameras are brought to [-1, 1] by the least and greatest of those that were
learned from, which is kept with the concept. Different: a camera of azimuth and elevation is read as its direction,
so that 360 degrees are 0; the view's vector stands before the thing's and not at the start of the caption.

Needs: as neural textual inversion. Pictures are not mirrored.

Families: Stable Diffusion 1, 2, XL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.core.settings import Count, Part, Weight
from sfumato.learning.mappers import numbered
from sfumato.learning.mapping import MapperLearning, Mappers, made, waves
from sfumato.learning.personal import Asked
from sfumato.methods.personalise.templates import OBJECT


@dataclass(frozen=True)
class ViewInversion(MapperLearning):
    """Learns a mapper of the view and one of the thing."""

    wants_cameras: ClassVar[bool] = True
    steps: Count = 10000
    batch: Count = 9
    rate: Weight = 9e-3
    hidden: Count = 64
    waves: Count = 32
    time_spread: Weight = 0.03
    """Standard deviation of the waves along the time, of [-1, 1]."""
    dropout: Part = 0.0
    bypass: Weight = 5.0
    camera_spread: Weight = 0.5
    """Along each number of the camera."""
    view: str = "view"
    """A word that is as long as the view's vectors."""

    def problem(self, asked: Asked) -> Mappers:
        assert asked.cameras is not None
        total, layers = asked.model.schedule.train_steps, asked.model.text_layers
        cameras = asked.cameras.float().to(asked.model.device)
        low, high = numbered(cameras).cpu().aminmax(dim=0)
        own = waves(asked, self.waves, (self.time_spread, self.layer_spread, *[self.camera_spread] * len(low)))
        ends = torch.tensor([[0.0, 0.0], [float(total), float(layers)]])
        mapper = {"hidden": self.hidden, "bypass": self.bypass, "length": math.sqrt(self.waves)}
        begin, end = torch.cat([ends[0], low]), torch.cat([ends[1], high])
        view = made(asked, self.view, own, "noise", **mapper, **centred(begin, end), usual=cameras.mean(0).cpu())
        thing = made(asked, asked.kind, own[:, :2], self.begin, **mapper, **centred(begin[:2], end[:2]))
        return self.taught(asked, {"view": view, "thing": thing}, OBJECT, cameras)


def centred(low: Tensor, high: Tensor) -> dict[str, Tensor]:
    """That by which inputs from ``low`` to ``high`` are brought to [-1, 1]; of those that are all alike to 0."""
    same = low == high
    return {"shift": (low + high) / 2, "scale": torch.where(same, 0.0, 2 / torch.where(same, 1.0, high - low))}
