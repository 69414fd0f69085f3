"""A motion adapter: attention over the frames of a clip, learnt between the frozen layers of the text-to-image UNet.

Clips are rendered while it trains, of scenes round which the camera swings and in which things turn; their words are of
the first frame. All frames of a clip have one noise level and their own noise (Guo et al. 2023, AnimateDiff). Modules
begin at zero, where every frame is what the UNet paints of it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from jaxtyping import Float
from torch import Tensor

from sfumato.stilllife import moves
from sfumato.stilllife.captions import caption
from sfumato.stilllife.scene import Scene, sample_scene
from sfumato.stilllife.train import Options, loop
from sfumato.stilllife.train.data import latents
from sfumato.stilllife.train.precision import autocast
from sfumato.stilllife.train.unet import EMPTY, Frozen, load_frozen, noiser
from sfumato.stilllife.train.vae import finished

FRAMES = 8  # of a clip that it learns from
MOST = 32  # frames that it can attend over
SWING = (15.0, 60.0)  # degrees of the camera from a clip's first frame to its last
TURN = 120.0  # at most so many degrees of each thing

Draw = Callable[[int, int], tuple[Tensor, Tensor]]


def run(args: Options) -> None:
    """Train the adapter and write it to ``OUT/final``."""
    device = loop.start(args)
    base: Any = finished(UNet2DConditionModel, args.unet, "unet").to(device)
    out, model = args.place("motion"), moving(base)
    ema = learnt(model, drawing(args, load_frozen(args, device)), args)
    ema.save_motion_modules(str(out / "final"))
    print(f"motion: written to {out / 'final'}, {loop.report('motion', args, {'motion': ema}, _batch(args), {})}")


def _batch(args: Options) -> int:
    return args.batch or 4


def moving(base: Any) -> Any:
    """The UNet with motion modules that do nothing yet, which alone are learned."""
    config = base.config
    adapter = MotionAdapter(
        block_out_channels=tuple(config.block_out_channels), motion_layers_per_block=config.layers_per_block,
        motion_num_attention_heads=config.attention_head_dim, motion_norm_num_groups=config.norm_num_groups,
        motion_max_seq_length=MOST, use_motion_mid_block=True,
    )  # fmt: skip
    model: Any = UNetMotionModel.from_unet2d(base, adapter)
    for name, p in model.named_parameters():
        if ".motion_modules." in name and ".proj_out." in name:
            torch.nn.init.zeros_(p)
    model.freeze_unet2d_params()
    return model.train()


def learnt(model: Any, draw: Draw, args: Options) -> Any:
    """The adapter's running mean after the run that the options ask for."""
    device, batch = model.device, _batch(args)
    diffuse = noiser(device, args.weighting)

    def step(i: int) -> tuple[Tensor, dict[str, Tensor]]:
        z, text = draw(i, batch)
        frames = z.shape[1]
        noisy = diffuse(z.transpose(1, 2).flatten(2, 3))  # frames as rows of one image: of one level
        with autocast(device):
            clips = noisy.z.unflatten(2, (frames, -1))
            prediction = model(clips, noisy.t, text.repeat_interleave(frames, 0)).sample.flatten(2, 3)
        return noisy.loss(prediction), {}

    return loop.fit("motion", {"motion": model}, step, args, rate=4e-4, batch=batch, ema=0.998)["motion"]


def drawing(args: Options, frozen: Frozen) -> Draw:
    """(step, size) -> scaled latents (size, frames, 4, 16, 16) of new clips, and their embedded captions."""

    def draw(step: int, size: int) -> tuple[Float[Tensor, "b f 4 h w"], Float[Tensor, "b 77 d"]]:
        from sfumato.stilllife.render import render

        rng = np.random.default_rng((args.seed, step, 9))
        scenes = [moved(sample_scene(rng), rng) for _ in range(size)]
        images = render([frame for clip in scenes for frame in clip], device=frozen.device).images
        words = ["" if rng.random() < EMPTY else caption(clip[0], rng) for clip in scenes]
        return latents(frozen.vae, images).unflatten(0, (size, FRAMES)), frozen.embed(words)

    return draw


def moved(scene: Scene, rng: np.random.Generator, frames: int = FRAMES) -> list[Scene]:
    """A clip that begins with a scene: the camera swings to one side, and things turn where they stand."""
    swing = float(rng.uniform(*SWING) * rng.choice((-1, 1)))
    things = tuple(replace(t, yaw=t.yaw + float(rng.uniform(-TURN, TURN))) for t in scene.things)
    camera = replace(scene.camera, azimuth=scene.camera.azimuth + swing)
    return moves.between(scene, replace(scene, camera=camera, things=things), frames)
