"""``sfumato bench real``: what holds on real pretrained weights and photographs, which do not ship with the package.

They are looked for in ``../shared/real``, or where ``SFUMATO_REAL`` says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones import autoencoders
from sfumato.backbones.load import load
from sfumato.bench.ports import faces, taef2
from sfumato.bench.report import Figure, Report, Target, gather
from sfumato.bench.session import Session
from sfumato.core.backbone import Backbone
from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.inversion import EDICT, DDIMInversion, EditFriendly, Inversion, invert, reconstruct
from sfumato.io.device import choose
from sfumato.media.images import read_image
from sfumato.methods.control import SelfAttentionGuidance
from sfumato.metrics.image import psnr
from sfumato.metrics.looks import detail
from sfumato.tasks import recipes

STEPS = 30
BATCH = 4
MEANINGS = {
    "plain_error": "largest difference of sampled latents from a loop of diffusers' DDIMScheduler",
    "plain_vs_diffusers": "time of denoise over that loop; median",
    "ddim_psnr": "samples by DDIM inversion and back, 30 steps, dB",
    "ddim_refined_psnr": "the same with each step of the inversion refined once",
    "exact_psnr": "the same of the worse of edit-friendly and EDICT",
    "taef2_psnr": "photographs of 270 x 480 pixels by the tiny autoencoder of FLUX.2's latents and back, dB",
    "taef2_small_psnr": "the same of objects that fill 256 x 256 pixels",
    "sag_detail": "high-frequency energy with self-attention guidance in the later half of the steps over without",
    "sag_published_detail": "the same with it in all steps, as published",
}
TARGETS = {
    "plain_error": Target(1e-4, at_least=False),
    "plain_vs_diffusers": Target(1.02, at_least=False),
    "ddim_psnr": Target(27.0),
    "exact_psnr": Target(45.0),
    "taef2_psnr": Target(32.0),
    "sag_detail": Target(1.0),
}


def real(name: str) -> Path:
    """A folder of real data. Raises ``SfumatoError`` where it is missing."""
    place = Path(os.environ.get("SFUMATO_REAL", "../shared/real")) / name
    if not place.exists():
        raise SfumatoError(f"there is no {place}; SFUMATO_REAL names the folder that has {name}")
    return place


class RealSession(Session):
    """The models, and samples that several measures start from."""

    @cached_property
    def faces(self) -> Backbone:
        return load(faces.pipeline(real("ddpm64")).to(self.device))

    @property
    def batches(self) -> list[list[int]]:
        """Seeds of the samples."""
        seeds = [1000 * self.seed + i for i in range(self.n)]
        return [seeds[i : i + BATCH] for i in range(0, self.n, BATCH)]

    @cached_property
    def samples(self) -> Float[Tensor, "n 3 64 64"]:
        return self.painted()

    def painted(self, **options: Any) -> Float[Tensor, "n 3 64 64"]:
        found = [denoise(self.faces, [""] * len(seeds), seed=seeds, steps=STEPS, **options) for seeds in self.batches]
        return torch.cat([sample.images for sample in found])


def run(n: int, seed: int, device: str = "auto", out: Path | None = None) -> Report:
    """Measure everything."""
    session = RealSession(n, seed, choose(device), out)
    return gather(Report("real", n, seed, str(session.device), MEANINGS, TARGETS), MEASURES, session, out)


def plain(session: RealSession) -> Mapping[str, Figure]:
    """Sampling beside the plainest loop of diffusers, on the same network."""
    from diffusers import DDIMScheduler

    model: Any = session.faces
    scheduler: Any = DDIMScheduler.from_config(model.pipe.scheduler.config)
    start = model.latents(session.batches[0], model.size, model.size)

    @torch.no_grad()
    def theirs() -> Tensor:
        x = start
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            x = scheduler.step(model.network(x, t).sample, t, x).prev_sample
        return x

    def ours() -> Tensor:
        return denoise(model, [""] * len(start), start=start, steps=STEPS).latents

    error = float((ours() - theirs()).abs().max())
    return {"plain_error": error, "plain_vs_diffusers": session.ratio(ours, theirs)}


def found_again(session: RealSession, how: Inversion) -> Float[np.ndarray, " n"]:
    """dB of samples that are inverted and painted again."""
    out = []
    for images in session.samples.split(BATCH):
        path = invert(session.faces, images, "", how)
        with torch.no_grad():
            again = session.faces.decode(reconstruct(session.faces, path)).cpu()
        out.append(psnr(again, images))
    figure = torch.cat(out).double().clamp(max=100).numpy()  # identical images are at 100 dB
    session.methods[repr(how)] = {"psnr": float(figure.mean())}
    return figure


def inverted(session: RealSession) -> Mapping[str, Figure]:
    session.keep("samples", session.samples)
    plain, refined = (found_again(session, DDIMInversion(refine=n, steps=STEPS)) for n in (0, 1))
    return {"ddim_psnr": plain, "ddim_refined_psnr": refined}


def exactly(session: RealSession) -> Mapping[str, Figure]:
    each = [found_again(session, how) for how in (EditFriendly(steps=STEPS), EDICT(steps=STEPS))]
    return {"exact_psnr": np.minimum(*each)}


def attended(session: RealSession) -> Mapping[str, Figure]:
    late = recipes.find("self-attention-guidance", "ddpm64").method
    out = {}
    for key, method in (("sag_detail", late), ("sag_published_detail", SelfAttentionGuidance())):
        guided = session.painted(methods=[method])
        session.keep(key, guided)
        out[key] = (detail(guided) / detail(session.samples)).double().numpy()
    return out


def photographs(session: RealSession) -> Mapping[str, Figure]:
    """n of a walk around a fox at 270 x 480 pixels, and one of each of n DreamBooth subjects at 256 x 256."""
    vae = taef2.autoencoder(real("taef2")).to(session.device)
    subjects = [folder for folder in sorted(real("dreambooth256").iterdir()) if folder.is_dir()]
    files = {
        "taef2_psnr": sorted((real("fox_quarter") / "images").iterdir()),
        "taef2_small_psnr": [sorted(folder.glob("*.jpg"))[0] for folder in subjects],
    }
    return {key: _seen_by(vae, some[: session.n], session.device) for key, some in files.items()}


@torch.no_grad()
def _seen_by(vae: Any, files: Sequence[Path], device: torch.device) -> Float[np.ndarray, " n"]:
    """dB of photographs that an autoencoder of 8 x 8 pixels a cell sees; what is over at their borders is left out."""
    out = []
    for file in files:
        image = read_image(file)[None]
        h, w = (n // 8 * 8 for n in image.shape[-2:])
        image = image[..., :h, :w].to(device)
        out.append(psnr(autoencoders.decode(vae, autoencoders.encode(vae, image)), image))
    return torch.cat(out).double().cpu().numpy()


MEASURES = (
    (("plain_error", "plain_vs_diffusers"), plain),
    (("ddim_psnr", "ddim_refined_psnr"), inverted),
    (("exact_psnr",), exactly),
    (("taef2_psnr", "taef2_small_psnr"), photographs),
    (("sag_detail", "sag_published_detail"), attended),
)
