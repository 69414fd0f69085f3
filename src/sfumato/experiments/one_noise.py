"""SDS, SDI and DDIM from one noise, flat images in the latents (Lukoianov 2024, fig. 2.1).

All start from what the model first sees in the same noise. SDI moves by plain gradient descent of rate 1 through the
sampler's levels, so that with cached noise it is DDIM; its inversion gets neither tau nor entropy. SDS draws its levels
and its noise and is moved by Adam, as it is elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sfumato.core.backbone import Backbone
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG
from sfumato.distill import At, Distillation, GuidedModel, Latents, canvases, distil
from sfumato.experiments.common import Batch, Subjects, tile
from sfumato.inversion.path import levels_of
from sfumato.learning.seeds import generator
from sfumato.media import plots
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.methods.distill.score_distillation_via_inversion import CACHED
from sfumato.metrics.image import psnr

SOURCE = (
    "Lukoianov 2024, figure 2.1: at the same guidance of 7.5 SDS makes a blurry image where DDIM makes a sharp one, "
    "and SDI, whose noise agrees with DDIM's, comes close to DDIM."
)
DDIM = "DDIM"
MOST = 99.0
"""PSNR in dB of images that cannot be told apart; also what equal ones are given."""


@dataclass(frozen=True)
class OneNoise:
    images: Mapping[str, Batch]
    """By name, DDIM first; then renders of the same prompts."""
    psnr: Mapping[str, float]
    """To DDIM, mean over images, dB."""
    looks: Mapping[str, Mapping[str, float]]


@torch.no_grad()
def one_noise(
    model: Backbone,
    subjects: Subjects,
    steps: int = 50,
    guidance: float = 7.5,
    high: float = 100.0,
    seed: int = 0,
    sds_steps: int = 200,
) -> OneNoise:
    """Sample and distil the same prompts from the same noise; SDS also at a ``high`` guidance."""
    prompts, n = subjects.prompts, len(subjects.said)
    like = model.latents(range(n), model.size, model.size)
    noise = torch.randn(like.shape, generator=generator(seed, 0)).to(like)  # what a cached run draws in its first step
    top = At((levels_of(model, noise, steps)[0],) * n)
    first = GuidedModel(model, prompts, CFG(guidance)).clean_and_noise(noise, top)[0]

    def run(method: Distillation, optimiser: canvases.Optimiser, steps: int) -> Batch:
        canvas = Latents(first)
        distil(
            model, canvas, prompts, method, steps, optimiser=canvases.optimiser(optimiser, "latent", None), seed=seed
        )
        return canvases.shown(model, canvas)

    cached = replace(CACHED, guidance=guidance)
    inverted = replace(cached, kappa="inversion", inversion_guidance=-guidance, tau=0.0, entropy=0.0)
    images = {
        DDIM: denoise(model, prompts, guide=guidance, steps=steps, start=noise).images.clamp(0, 1),
        "SDI, cached noise": run(cached, "sgd", steps),
        "SDI, inverted noise": run(inverted, "sgd", steps),
        f"SDS, {guidance:g}": run(ScoreDistillation(guidance=guidance), "adam", sds_steps),
        f"SDS, {high:g}": run(ScoreDistillation(guidance=high), "adam", sds_steps),
    }
    near = {k: float(psnr(x, images[DDIM]).clamp_max(MOST).mean()) for k, x in images.items() if k != DDIM}
    images["renders"] = subjects.renders()
    return OneNoise(images, near, {k: subjects.looks(x) for k, x in images.items()})


def numbers(found: OneNoise) -> dict[str, object]:
    """The figures, for a machine to read."""
    return {
        name: {**({"psnr_to_ddim": found.psnr[name]} if name in found.psnr else {}), **looks}
        for name, looks in found.looks.items()
    }


def ours(found: OneNoise) -> str:
    """What the numbers say."""
    order = sorted(found.psnr, key=lambda k: -found.psnr[k])
    near = ", ".join(f"{name} {found.psnr[name]:.1f} dB" for name in order)
    truth = found.looks[DDIM]["detail"]
    fine = ", ".join(f"{name} {found.looks[name]['detail'] / truth:.2g}" for name in order)
    return f"Nearest to DDIM first: {near}. High-frequency energy over DDIM's: {fine}."


def draw(found: OneNoise, path: Path, about: str) -> None:
    """A column a way, a row an image, and below each what it measures."""
    n, columns = min(4, len(found.images[DDIM])), len(found.images)
    with plots.figure(
        path, (1.6 * columns, 1.6 * n + 1.0), "From one noise; PSNR to DDIM, detail over DDIM's", about
    ) as figure:
        axes = figure.subplots(n, columns, squeeze=False)
        for j, (name, images) in enumerate(found.images.items()):
            looks = found.looks[name]
            near = f"{found.psnr[name]:.1f} dB\n" if name in found.psnr else ""
            fine = looks["detail"] / found.looks[DDIM]["detail"]
            said = f"{near}detail {fine:.2f}\nsaturation {looks['saturation']:.2f}"
            for i in range(n):
                tile(axes[i, j], images[i : i + 1], name if i == 0 else "", below=said if i == n - 1 else "")
