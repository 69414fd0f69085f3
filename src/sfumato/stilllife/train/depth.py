"""The depth ControlNet: steers the frozen UNet by a picture of how near things are; see ``networks.depth_image``."""

from __future__ import annotations

from typing import Any

from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from sfumato.stilllife import networks
from sfumato.stilllife.train import Options, loop
from sfumato.stilllife.train.precision import autocast
from sfumato.stilllife.train.unet import images, load_frozen, noiser, quicken
from sfumato.stilllife.train.vae import finished

EMPTY = 0.3  # part of the captions left empty: then only the depth tells what is there


def run(args: Options) -> None:
    """Train the ControlNet and write it to ``OUT/final``."""
    device = loop.start(args)
    out, batch = args.place("depth"), args.batch or 16
    unet: Any = finished(UNet2DConditionModel, args.unet, "unet").to(device).eval().requires_grad_(False)
    model: Any = ControlNetModel.from_pretrained(args.init) if args.init else networks.controlnet(unet)
    model.to(device).train().requires_grad_(True)
    quicken(unet)
    quicken(model)
    frozen = load_frozen(args, device)
    draw, diffuse = images(args, frozen, EMPTY, 4), noiser(device, args.weighting)

    def step(i: int) -> tuple[Tensor, dict[str, Tensor]]:
        drawn = draw(i, batch)
        depth, text = drawn["depth"].to(device).float(), drawn["text"]
        noisy = diffuse(drawn["latents"])
        with autocast(device):
            down, mid = model(noisy.z, noisy.t, text, networks.depth_image(depth), return_dict=False)
            prediction = unet(
                noisy.z,
                noisy.t,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample
        return noisy.loss(prediction), {}

    ema: Any = loop.fit("depth", {"depth": model}, step, args, rate=4e-4, batch=batch, ema=0.998)["depth"]
    ema.set_attn_processor(AttnProcessor2_0())
    ema.save_pretrained(out / "final")
    print(f"depth: written to {out / 'final'}, {loop.report('depth', args, {'depth': ema}, batch, {})}")
