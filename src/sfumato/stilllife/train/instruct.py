"""InstructPix2Pix: edits an image as an instruction says, learnt from counterfactual pairs of renders.

Starts from the text-to-image UNet. Its input convolution also reads the latents of the image (not scaled, as the
published model does). All weights are trained: low-rank changes learn what an instruction asks for, and too slowly a
way for the image to the prediction.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor

from sfumato.stilllife import networks, weights
from sfumato.stilllife.train import Options, loop
from sfumato.stilllife.train.data import SPLITS, Shards, encode_shards, latents, pair_batch
from sfumato.stilllife.train.precision import autocast
from sfumato.stilllife.train.unet import Frozen, load_frozen, noiser, quicken
from sfumato.stilllife.train.vae import finished

CHANGED = 3.0  # how much more a cell that the instruction changes weighs: most of an image is only to be copied
DIFFERS = 0.1  # mean squared difference of a cell's latents, of unit variance, from which on it is changed
DROPPED = 0.05  # part of the pairs without the words, as many without words and image, as many without the image


def run(args: Options) -> None:
    """Train the InstructPix2Pix UNet and write it to ``OUT/final``."""
    device = loop.start(args)
    out, batch = args.place("instruct"), args.batch or 16
    base: Any = finished(UNet2DConditionModel, args.unet, "unet")
    model: Any = networks.widen(base)
    if args.init:
        model.load_state_dict(weights.merged(base.state_dict(), weights.read(args.init)[1]))
    model.to(device).train()
    quicken(model)
    frozen = load_frozen(args, device)
    draw, diffuse = pairs(args, frozen), noiser(device, args.weighting)
    silence = frozen.embed([""])

    def step(i: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng((args.seed, i, 5))
        z, text = draw(i, batch)
        chance = torch.from_numpy(rng.random(batch)).to(device).view(-1, 1, 1)
        text = torch.where(chance < 2 * DROPPED, silence, text)
        seen = (chance < DROPPED) | (chance >= 3 * DROPPED)
        image = z[:, 0] / networks.SCALING * seen[..., None]
        noisy = diffuse(z[:, 1])
        with autocast(device):
            prediction = model(torch.cat([noisy.z, image], 1), noisy.t, text).sample
        noise = noisy.loss(prediction, changed(z))
        return noise, {"plain": noisy.loss(prediction.detach())}

    ema: Any = loop.fit("instruct", {"instruct": model}, step, args, rate=4e-4, batch=batch, ema=0.998)["instruct"]
    ema.set_attn_processor(AttnProcessor2_0())
    ema.save_pretrained(out / "final")
    print(f"instruct: written to {out / 'final'}, {loop.report('instruct', args, {'instruct': ema}, batch, {})}")


def changed(z: Float[Tensor, "b 2 4 h w"]) -> Float[Tensor, "b 1 h w"]:
    """How much each cell weighs, 1 on average over an image, from the latents before and after."""
    differs = (z[:, 1] - z[:, 0]).square().mean(1, keepdim=True) > DIFFERS
    weight = 1 + (CHANGED - 1) * differs
    return weight / weight.mean((2, 3), keepdim=True)


def pairs(args: Options, frozen: Frozen) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """(step, size) -> scaled latents (size, 2, 4, 16, 16) before and after, and the embedded instructions.

    From the ``pairs`` shards; rendered while training on a GPU when there are none.
    """
    device = frozen.device
    if device.type == "cuda" and not any(args.data.glob("pairs-*.safetensors")):

        def fresh(step: int, size: int) -> tuple[Tensor, Tensor]:
            rng = np.random.default_rng((args.seed, len(SPLITS), step))
            images, words = pair_batch(rng, size, device)
            z = latents(frozen.vae, images.flatten(0, 1)).unflatten(0, (size, 2))
            return z, frozen.embed([w["instruction"] for w in words])

        return fresh
    found = encode_shards(Shards(args.data, "pairs", args.seed, device), frozen.vae)
    words = [json.loads(found.line(i))["instruction"] for i in range(len(found))]
    text = torch.cat([frozen.embed(words[i : i + 64]).half().cpu() for i in range(0, len(words), 64)])

    def stored(step: int, size: int) -> tuple[Tensor, Tensor]:
        at = found.pick(step, size)
        return found.rows("latents", at).to(device).float(), text[at].to(device).float()

    return stored
