"""SDS, SDI and DDIM from one noise, flat images in the latents (Lukoianov 2024, fig. 2.1).

All start from what the model first sees in the same noise. SDI moves by plain gradient descent of rate 1 through the
sampler's levels, so that with cached noise it is DDIM; its inversion gets neither tau nor entropy. SDS draws its levels
and its noise and is moved by Adam, as it is elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch

from sfumato.core.backbone import Backbone
from sfumato.core.denoising import denoise
from sfumato.core.guidance import guided
from sfumato.core.settings import Between
from sfumato.distill import Distillation, GuidedModel, Latents, canvases, distil
from sfumato.experiments.common import MOST_STEPS, Batch, OfSubjects, Subjects, tile
from sfumato.experiments.experiment import Findings, different
from sfumato.learning.seeds import generator
from sfumato.media import plots
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.methods.distill.score_distillation_via_inversion import CACHED
from sfumato.metrics.image import psnr

DDIM = "DDIM"
MOST = 99.0
"""PSNR in dB of images that cannot be told apart; also what equal ones are given."""


@dataclass(frozen=True)
class Ways(Findings):
    images: Mapping[str, Batch]
    """By name, DDIM first; then renders of the same prompts."""
    psnr: Mapping[str, float]
    """To DDIM, mean over images, dB."""
    looks: Mapping[str, Mapping[str, float]]

    def numbers(self) -> dict[str, object]:
        return {
            name: {**({"psnr_to_ddim": self.psnr[name]} if name in self.psnr else {}), **looks}
            for name, looks in self.looks.items()
        }

    def ours(self) -> str:
        order = sorted(self.psnr, key=lambda k: -self.psnr[k])
        near = ", ".join(f"{name} {self.psnr[name]:.1f} dB" for name in order)
        truth = self.looks[DDIM]["detail"]
        fine = ", ".join(f"{name} {self.looks[name]['detail'] / truth:.2g}" for name in order)
        return f"Nearest to DDIM first: {near}. High-frequency energy over DDIM's: {fine}."

    def draw(self, path: Path, about: str = "") -> None:
        """A column a way, a row an image, and below each what it measures."""
        n, columns = min(4, len(self.images[DDIM])), len(self.images)
        with plots.figure(
            path, (1.6 * columns, 1.6 * n + 1.0), "From one noise; PSNR to DDIM, detail over DDIM's", about
        ) as figure:
            axes = figure.subplots(n, columns, squeeze=False)
            for j, (name, images) in enumerate(self.images.items()):
                looks = self.looks[name]
                near = f"{self.psnr[name]:.1f} dB\n" if name in self.psnr else ""
                fine = looks["detail"] / self.looks[DDIM]["detail"]
                below = f"{near}detail {fine:.2f}\nsaturation {looks['saturation']:.2f}"
                for i in range(n):
                    tile(axes[i, j], images[i : i + 1], name if i == 0 else "", below=below if i == n - 1 else "")


@dataclass(frozen=True)
class OneNoise(OfSubjects):
    """SDS, SDI and DDIM from one noise: how near they come, and how sharp they are.

    Example: sfumato experiment one-noise --prompt "a red cube on grass"
    """

    steps: Annotated[int, Between(1, MOST_STEPS)] = 50
    """Steps of DDIM and of SDI."""
    sds_steps: Annotated[int, Between(1, MOST_STEPS)] = 200
    """Steps of SDS."""
    guidance: float = 7.5
    """Of all."""
    high: float = 100.0
    """Of SDS, a second time."""

    source = (
        "Lukoianov 2024, figure 2.1: at the same guidance of 7.5 SDS makes a blurry image where DDIM makes a sharp "
        "one, and SDI, whose noise agrees with DDIM's, comes close to DDIM."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        different("guidance and high", (self.guidance, self.high))

    @property
    def works(self) -> int:
        return 5

    @torch.no_grad()
    def measure(self, model: Backbone, subjects: Subjects) -> Ways:
        prompts, n, seed = subjects.prompts, len(subjects.stated), self.seed
        like = model.latents(range(n), model.size, model.size)
        noise = torch.randn(like.shape, generator=generator(seed, 0)).to(like)
        top = model.levels(self.steps, noise.shape[-2:])[0]
        first = GuidedModel(model, prompts, guided(model, self.guidance)).clean_and_noise(noise, top)[0]

        def run(method: Distillation, optimiser: canvases.Optimiser, steps: int) -> Batch:
            canvas, moved = Latents(first), canvases.optimiser(optimiser, "latent", None)
            distil(model, canvas, prompts, method, steps, optimiser=moved, seed=seed)
            return canvases.shown(model, canvas)

        cached = replace(CACHED, guidance=self.guidance)
        inverted = replace(cached, kappa="inversion", inversion_guidance=-self.guidance, tau=0.0, entropy=0.0)
        sampled = denoise(model, prompts, guide=self.guidance, steps=self.steps, start=noise)
        images = {
            DDIM: sampled.images.clamp(0, 1),
            "SDI, cached noise": run(cached, "sgd", self.steps),
            "SDI, inverted noise": run(inverted, "sgd", self.steps),
        }
        for scale in (self.guidance, self.high):
            images[f"SDS, {scale:g}"] = run(ScoreDistillation(guidance=scale), "adam", self.sds_steps)
        near = {k: float(psnr(x, images[DDIM]).clamp_max(MOST).mean()) for k, x in images.items() if k != DDIM}
        images["renders"] = subjects.renders()
        return Ways(images, near, {k: subjects.looks(x) for k, x in images.items()})
