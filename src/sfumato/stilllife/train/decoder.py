"""The decoder alone: every painting gains by it, and no other network has to change.

Its encoder stays as it is, or, with an ``anchor``, learns too to put into the latents what the decoder misses, while it
pays for every change of them: what was trained on the latents of before goes on working.

Absolute, squared and edge errors as the VAE's; the difference of the oracle's features, which tells where a face
or a tile has lost its edges; and, in the last part of the run, a small discriminator of patches (hinge loss, Esser et
al. 2021, 2012.09841), since what an error can only blur, a judge of looks asks for. The discriminator is thrown away.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from sfumato.media import pictures
from sfumato.metrics.image import psnr
from sfumato.metrics.looks import detail
from sfumato.stilllife import networks
from sfumato.stilllife.oracle import Oracle
from sfumato.stilllife.train import Options, loop
from sfumato.stilllife.train.data import held_out, source
from sfumato.stilllife.train.precision import autocast
from sfumato.stilllife.train.vae import NOISE, edges, finished, hues, pixels

FEATURES = 0.2  # weight of the oracle's features
JUDGED = 0.4  # the discriminator's pull on a pixel, as a part of that of all errors together
JUDGED_FROM = 0.5  # part of the run after which it counts
HUE = 10.0


class Patches(nn.Module):
    """Tells renders from reconstructions by patches of 34 pixels: a number for each 8 x 8 pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 2 * width, 4, 2, 1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, 1, 1),
        )

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h/8 w/8"]:
        return self.layers(x)


def run(args: Options) -> None:
    """Train the decoder of a VAE and write the whole VAE to ``OUT/final``."""
    device = loop.start(args)
    out, batch = args.place("decoder"), args.batch or 16
    model: Any = finished(AutoencoderKL, args.init or args.vae, "vae")
    model.to(device, memory_format=torch.channels_last).train().requires_grad_(True)
    before: Any = copy.deepcopy(model).eval().requires_grad_(False)
    for half in (model.encoder, model.quant_conv):
        half.requires_grad_(args.anchor is not None)
    oracle = Oracle.load(device=device).requires_grad_(False)
    judge: Any = Patches()
    judge.to(device, memory_format=torch.channels_last)
    images = source(args, device)
    seen = held_out(args, device)["images"].to(device)

    def step(i: int, fraction: float) -> tuple[Tensor, dict[str, Tensor]]:
        x = pixels(images, i, batch, args.seed).to(device, memory_format=torch.channels_last) * 2 - 1
        with autocast(device):
            z = model.encode(x).latent_dist.mode()
            spread = NOISE * z.detach().float().std() * torch.rand(len(x), 1, 1, 1, device=device)
            y = model.decode(z + spread * torch.randn_like(z)).sample
            looks = features(oracle, x, y)
        y = y.float()
        squared = F.mse_loss(y, x)
        loss = F.l1_loss(y, x) + 4 * squared + 0.5 * edges(y, x) + HUE * hues(y, x) + FEATURES * looks
        figures = {
            "psnr_train": -10 * (squared / 4).log10(),
            "looks": looks,
            "detail": detail(y).mean() / detail(x).mean(),
        }
        if args.anchor is not None:
            with torch.no_grad(), autocast(device):
                old = before.encode(x).latent_dist.mode()
            figures["moved"] = F.mse_loss(z.float(), old.float()) * networks.SCALING**2
            loss = loss + args.anchor * figures["moved"]
        if fraction >= JUDGED_FROM:
            with autocast(device):
                fooled = functional_call(judge, {k: p.detach() for k, p in judge.named_parameters()}, y)
                true, false = judge(x), judge(y.detach())
            hinge = (F.relu(1 - true) + F.relu(1 + false)).float().mean()
            fooled = -fooled.float().mean()
            pulls = [torch.autograd.grad(term, y, retain_graph=True)[0].norm() for term in (loss, fooled)]
            loss = loss + JUDGED * (pulls[0] / pulls[1].clamp_min(1e-8)) * fooled + hinge
            figures["told"] = hinge
        return loss, figures

    def preview(ema: loop.Modules, path: Path) -> None:
        x = seen[:16]
        live: Any = ema["vae"]
        both = torch.stack([x, networks.reconstruct(live, x)], 1).flatten(0, 1)
        pictures.write(pictures.sheet(both, 8), path)

    modules = {"vae": model, "judge": judge}
    settings = {"weight_decay": 0.0, "preview": preview, "timed": True}
    ema: Any = loop.fit("decoder", modules, step, args, rate=5e-4, batch=batch, **settings)["vae"]
    ema.save_pretrained(out / "final")
    figures = judged(ema, seen)
    print(
        f"decoder: {figures}, written to {out / 'final'}, {loop.report('decoder', args, {'vae': ema}, batch, figures)}"
    )


def features(oracle: Oracle, x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Tensor:
    """Mean absolute difference of the oracle's first three levels of features, each of unit length at every place."""

    def levels(images: Tensor) -> list[Tensor]:
        h = oracle.stem(F.pixel_unshuffle(images, 2).contiguous(memory_format=torch.channels_last))
        found = []
        for i in range(3):
            h = oracle.encode[i](oracle.down[i - 1](h) if i else h)
            found.append(F.normalize(h.float(), dim=1))
        return found

    with torch.no_grad():
        wanted = levels(x)
    return torch.stack([(a - b).square().sum(1).mean() for a, b in zip(levels(y), wanted, strict=True)]).sum()


@torch.no_grad()
def judged(vae: Any, images: Float[Tensor, "b 3 h w"]) -> dict[str, float]:
    """PSNR of reconstructions in dB, and their detail as a part of the renders'."""
    again = networks.reconstruct(vae, images)
    found = {"PSNR of held-out renders, dB": float(psnr(again, images).mean())}
    return found | {"detail over that of renders": float(detail(again).mean() / detail(images).mean())}
