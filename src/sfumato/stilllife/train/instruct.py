"""InstructPix2Pix: edits an image as an instruction says, learnt from counterfactual pairs of renders.

Starts from the text-to-image UNet. Trained are low-rank changes of its attention, feed-forward and convolution weights,
and the input convolution, which also reads the latents of the image (not scaled, as the published model does).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from jaxtyping import Float
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from sfumato.stilllife import networks
from sfumato.stilllife.train import Options, loop
from sfumato.stilllife.train.data import SPLITS, Shards, encode_shards, latents, pair_batch
from sfumato.stilllife.train.precision import autocast
from sfumato.stilllife.train.unet import WEIGHTING, Frozen, load_frozen, noiser, quicken
from sfumato.stilllife.train.vae import finished

RANK = 8
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"]
CHANGED = 8.0  # how much more a cell that the instruction changes weighs: most of an image is only to be copied
DIFFERS = 0.1  # mean squared difference of a cell's latents, of unit variance, from which on it is changed
DROPPED = 0.05  # part of the pairs without the words, as many without words and image, as many without the image


def run(args: Options) -> None:
    """Train the InstructPix2Pix UNet and write it, with the low-rank changes merged in, to ``OUT/final``."""
    device = loop.start(args)
    out, batch = args.place("instruct"), args.batch or 32
    model: Any = lora(finished(UNet2DConditionModel, args.unet, "unet"))
    if args.init:
        begin(model, load_file(args.init))
    model.to(device).train()
    quicken(model)
    frozen = load_frozen(args, device)
    draw, diffuse = pairs(args, frozen), noiser(device, args.weighting or WEIGHTING)

    def step(i: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng((args.seed, i, 5))
        z, said = draw(i, batch)
        chance = rng.random(batch)
        words = ["" if c < 2 * DROPPED else w for c, w in zip(chance, said, strict=True)]
        seen = torch.from_numpy((chance < DROPPED) | (chance >= 3 * DROPPED))
        image = z[:, 0] / networks.SCALING * seen.to(device).view(-1, 1, 1, 1)
        noisy = diffuse(z[:, 1])
        embedded = frozen.embed(words)
        with autocast(device):
            prediction = model(torch.cat([noisy.z, image], 1), noisy.t, embedded).sample
        noise = noisy.loss(prediction, changed(z))
        return noise, {"plain": noisy.loss(prediction.detach())}

    ema: Any = loop.fit("instruct", {"instruct": model}, step, args, rate=5e-4, batch=batch, ema=0.998)["instruct"]
    ema.set_attn_processor(AttnProcessor2_0())
    final = merged(ema)
    final.save_pretrained(out / "final")
    print(f"instruct: written to {out / 'final'}, {loop.report('instruct', args, {'instruct': final}, batch, {})}")


def changed(z: Float[Tensor, "b 2 4 h w"]) -> Float[Tensor, "b 1 h w"]:
    """How much each cell weighs, 1 on average over an image, from the latents before and after."""
    differs = (z[:, 1] - z[:, 0]).square().mean(1, keepdim=True) > DIFFERS
    weight = 1 + (CHANGED - 1) * differs
    return weight / weight.mean((2, 3), keepdim=True)


def lora(base: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of ``base`` with eight input channels, of which only low-rank changes and ``conv_in`` are trained."""
    model = networks.widen(base).requires_grad_(False)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
    model.conv_in.requires_grad_(True)
    return model


def begin(model: UNet2DConditionModel, changes: Mapping[str, Tensor]) -> None:
    """Start from the changes of an earlier run as they ship, also where the base has been trained on since."""
    state = dict(model.named_parameters())
    with torch.no_grad():
        for key, value in changes.items():
            name, _, part = key.rpartition(".")
            if part == "lora_up":
                kept = value.shape[1]
                up, down = (state[f"{name}.lora_{side}.default.weight"] for side in "BA")
                up.zero_()[:, :kept] = value.view_as(up[:, :kept])
                down[:kept] = changes[f"{name}.lora_down"].view_as(down[:kept]).to(down)
            elif part != "lora_down":
                state[key].copy_(value)


def merged(model: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same function as an ordinary UNet, the changes added to the weights."""
    model.fuse_lora()
    model.unload_lora()
    return model


def pairs(args: Options, frozen: Frozen) -> Callable[[int, int], tuple[Tensor, list[str]]]:
    """(step, size) -> scaled latents (size, 2, 4, 16, 16) before and after, and the instructions.

    From the ``pairs`` shards; rendered while training on a GPU when there are none.
    """
    if frozen.device.type == "cuda" and not any(args.data.glob("pairs-*.safetensors")):

        def fresh(step: int, size: int) -> tuple[Tensor, list[str]]:
            rng = np.random.default_rng((args.seed, len(SPLITS), step))
            images, words = pair_batch(rng, size, frozen.device)
            z = latents(frozen.vae, images.flatten(0, 1)).unflatten(0, (size, 2))
            return z, [w["instruction"] for w in words]

        return fresh
    found = encode_shards(Shards(args.data, "pairs", args.seed, frozen.device), frozen.vae)

    def stored(step: int, size: int) -> tuple[Tensor, list[str]]:
        at = found.pick(step, size)
        z = found.rows("latents", at).to(frozen.device).float()
        return z, [json.loads(found.line(i))["instruction"] for i in at]

    return stored
