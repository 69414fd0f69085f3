"""Reading an image at the size of Stable Diffusion 1.5: ``python benchmarks/perceive.py [--side 512]``.

Time and peak memory of DiffSeg, DIFT and the attribution of words on networks of Stable Diffusion 1.5's own shape with
random weights, float32, on all cores that torch takes. Segments and matches of random weights mean nothing; what they
cost is what the real ones cost. The image is encoded once, before anything is timed.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from sfumato.backbones.unet import UNet
from sfumato.bench.truth import renders
from sfumato.bench.units import timed
from sfumato.io.device import choose
from sfumato.methods.perceive.diff_seg import DiffSeg
from sfumato.methods.perceive.dift import DIFT
from sfumato.methods.perceive.text_attribution import TextAttribution
from sfumato.reading.reader import read
from sfumato.stilllife import networks
from sfumato.stilllife.tokenizer import special_ids, vocab_size


def stable_diffusion() -> UNet:
    """Stable Diffusion 1.5's networks as its configuration has them, drawn at random; the built-in words."""
    torch.manual_seed(0)
    start, end = special_ids()
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=vocab_size(),
        bos_token_id=start, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
    )  # fmt: skip
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=CLIPTextModel(text).eval(), tokenizer=networks.tokenizer(), unet=unet.eval(),
        scheduler=diffusers.DDIMScheduler(**betas), requires_safety_checker=False, **parts,
    )  # fmt: skip
    return UNet("Stable Diffusion 1.5, random", pipe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device, model = choose(args.device), stable_diffusion()
    model.pipe.to(device)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {device}, {args.side} pixels")
    images = renders(np.random.default_rng(0), 2, args.side).images
    with torch.no_grad(), read(model, images[0], args.side) as one, read(model, images[1], args.side) as other:
        points = torch.rand(100, 2) * args.side
        tried: dict[str, Callable[[], object]] = {
            "encode": lambda: (one.latents, other.latents),
            "DiffSeg": lambda: DiffSeg()(one),
            "DIFT, a pair, ensembles of 8": lambda: DIFT()(one, other, points),
            "text attribution, 10 steps": lambda: TextAttribution(("cube", "grass"))(one),
        }
        for name, work in tried.items():
            _, cost = timed(work, device)
            print(f"{name}: {cost['seconds']:.1f} s, {cost['peak_mb']:.0f} MiB beyond the networks", flush=True)


if __name__ == "__main__":
    main()
