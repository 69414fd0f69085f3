"""Score distillation: gradients that a frozen image model gives to whatever renders images, and the run that uses them.

A gradient is a pure function in a file of ``sfumato.methods.distill``, together with its published settings:

    g = score_distillation(prior, latents, at, noise)
    apply_gradient(latents, g).backward()

``distil(model, generator, prompts, method, steps)`` is the run. Nothing here knows what a scene is.
"""

from __future__ import annotations

from sfumato.distill.generators import (
    Coordinates,
    FlatViews,
    Generator,
    Latents,
    Pixels,
    RandomViews,
    Rendering,
    View,
    Viewpoints,
)
from sfumato.distill.gradients import Reduction, Weighting, apply_gradient, clipped, weight
from sfumato.distill.loop import ADAM, Distillation, Gradient, Now, Record, distil
from sfumato.distill.prior import GuidedModel, Images, noises
from sfumato.learning.annealing import DREAMFUSION, Ramp, Times, between, constant, linear, piecewise, square_root

__all__ = [
    "ADAM",
    "DREAMFUSION",
    "Coordinates",
    "Distillation",
    "FlatViews",
    "Generator",
    "Gradient",
    "GuidedModel",
    "Images",
    "Latents",
    "Now",
    "Pixels",
    "Ramp",
    "RandomViews",
    "Record",
    "Reduction",
    "Rendering",
    "Times",
    "View",
    "Viewpoints",
    "Weighting",
    "apply_gradient",
    "between",
    "clipped",
    "constant",
    "distil",
    "linear",
    "noises",
    "piecewise",
    "square_root",
    "weight",
]
