"""The VAE: reconstruction on crops and whole images in turn, with a trace of KL and of noise on the latents.

Crops of 64 pixels give four times as many different images for the same work; whole images keep the statistics of the
normalisation layers those of the images that are encoded later. Both kinds of step cover the same number of pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from sfumato.media import pictures
from sfumato.metrics.image import psnr
from sfumato.stilllife import networks, weights
from sfumato.stilllife.train import Options, loop
from sfumato.stilllife.train.data import Shards, Source, held_out, source
from sfumato.stilllife.train.precision import autocast

CROP = 64
NOISE = 0.08  # most noise on the latents, as a part of their own deviation: the decoder learns to bear small errors
KL = 1e-6
HUE = 30.0  # without it, luminance takes three of the four channels: green turns grey and purple blue, at a good PSNR


def run(args: Options) -> None:
    """Train the VAE, rescale its latents and write it to ``OUT/final``."""
    device = loop.start(args)
    out, batch = args.place("vae"), args.batch or 16
    model: Any = AutoencoderKL.from_pretrained(args.init) if args.init else networks.vae()
    if args.init is None:
        with torch.no_grad():
            model.quant_conv.bias[4:] = -6.0  # start with little noise, so that the latents are used at once
    model.to(device, memory_format=torch.channels_last).train()  # twice as fast on a CPU at these few channels
    images = source(args, device)
    seen = held_out(args, device)["images"].to(device)

    def step(i: int) -> tuple[Tensor, dict[str, Tensor]]:
        x = pixels(images, i, batch, args.seed).to(device, memory_format=torch.channels_last) * 2 - 1
        with autocast(device):
            posterior = model.encode(x).latent_dist
            z = posterior.sample()
            spread = NOISE * z.detach().float().std() * torch.rand(len(x), 1, 1, 1, device=device)
            y = model.decode(z + spread * torch.randn_like(z)).sample
        y = y.float()
        kl = posterior.kl().mean() / z[0].numel()
        squared = F.mse_loss(y, x)
        loss = F.l1_loss(y, x) + 4 * squared + 0.5 * edges(y, x) + HUE * hues(y, x) + KL * kl
        return loss, {"psnr_train": -10 * (squared / 4).log10(), "hues": hues(y, x), "kl": kl}

    def preview(ema: loop.Modules, path: Path) -> None:
        x = seen[:16]
        live: Any = ema["vae"]
        both = torch.stack([x, networks.reconstruct(live, x)], 1).flatten(0, 1)
        pictures.write(pictures.sheet(both, 8), path)

    ema: Any = loop.fit("vae", {"vae": model}, step, args, rate=1e-3, batch=batch, weight_decay=0.0, preview=preview)[
        "vae"
    ]
    z = torch.cat([ema.encode(part * 2 - 1).latent_dist.mean for part in seen.split(32)])
    networks.whiten(ema, z.mean((0, 2, 3)), z.std((0, 2, 3)))
    ema.save_pretrained(out / "final")
    figures = {"PSNR of held-out renders, dB": float(psnr(networks.reconstruct(ema, seen), seen).mean())}
    print(f"vae: {figures}, written to {out / 'final'}, {loop.report('vae', args, {'vae': ema}, batch, figures)}")


def finished(kind: Any, place: Path, name: str) -> Any:
    """The network in the folder ``place`` if there is one, else the one that ships. ``SfumatoError`` if neither."""
    return kind.from_pretrained(place) if place.is_dir() else weights.module(name)


def pixels(images: Source, step: int, batch: int, seed: int) -> Float[Tensor, "b 3 h w"]:
    """Crops on even steps, a quarter as many whole images on odd ones; in [0, 1]."""
    whole = step % 2 == 1
    count = max(1, batch // 4) if whole else batch
    if isinstance(images, Shards):  # without the scenes, which nobody reads here
        x = images.rows("images", images.pick(step, count)).float() / 255
    else:
        x = images.batch(step, count)["images"]
    if whole:
        return x
    # whole latents: hatching and tiles repeat every four pixels from an image's corner, and no latent tells of a shift
    most = (x.shape[-1] - CROP) // networks.FACTOR
    corners = networks.FACTOR * np.random.default_rng((seed, step, 1)).integers(0, most + 1, (count, 2))
    return torch.stack([im[:, r : r + CROP, c : c + CROP] for im, (r, c) in zip(x, corners.tolist(), strict=True)])


def hues(y: Float[Tensor, "b 3 h w"], x: Float[Tensor, "b 3 h w"]) -> Tensor:
    """Mean squared error of the mean colour that each latent stands for."""
    return F.avg_pool2d(y - x, networks.FACTOR).square().mean()


def edges(y: Float[Tensor, "b 3 h w"], x: Float[Tensor, "b 3 h w"]) -> Tensor:
    """Mean absolute error of the differences between neighbours."""
    d = y - x
    return (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
