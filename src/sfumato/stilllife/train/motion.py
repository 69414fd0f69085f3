"""A motion adapter: attention over the frames of a clip, learnt between the frozen layers of the text-to-image UNet.

Clips are of scenes round which the camera swings and in which things turn; their words are of the scene in the middle.
All frames of a clip have one noise level (Guo et al. 2023, AnimateDiff); their noise is their own in half of the clips,
and in the others partly common to all (Ge et al. 2023, PYoCo). A clip has ``MOST`` instants, of which ``FRAMES`` are
rendered and seen, so that a step costs half of what it is about.

To be small, modules stand at the finer levels only, and have attention without the layers that feed forward. To learn
in few steps, what they add to an image begins at zero, where every frame is what the UNet paints of it alone, and what
they read as what they need: each place's features beside those of the same place in frames that are near and alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.io.files import atomic, writable, write_text
from sfumato.stilllife import moves
from sfumato.stilllife.captions import caption
from sfumato.stilllife.scene import Scene, redress, sample_scene
from sfumato.stilllife.train import Options, loop
from sfumato.stilllife.train.data import DRESSES, latents
from sfumato.stilllife.train.precision import autocast
from sfumato.stilllife.train.unet import EMPTY, Frozen, load_frozen, noiser, quicken
from sfumato.stilllife.train.vae import finished

FRAMES = 8  # of a clip that are rendered and seen
MOST = 16  # instants of a clip, and frames that it can attend over
SWING = (20.0, 50.0)  # degrees of the camera from a clip's first instant to its last
TURN = 60.0  # at most so many degrees of each thing
SHARED = 0.5  # variance that the frames' noise has in common, in half of the clips
DOWN, UP = 2, 3  # finest levels with modules, on the way down and up
ALIKE = 0.7  # of features that a query and a key begin with
LOUD = 4.0  # times its own size, what the last layer reads: so much faster it learns than the others
REPORT = "motion-run"  # beside the page on the adapter, which is written by hand
USES = 8  # clips drawn a new geometry; each has ``DRESSES`` appearances, forwards and backwards

Draw = Callable[[int, int], tuple[Tensor, Tensor, Tensor]]


def run(args: Options) -> None:
    """Train the adapter and write it to ``OUT/final``."""
    device = loop.start(args)
    base: Any = finished(UNet2DConditionModel, args.unet, "unet").to(device)
    out, model = args.place("motion"), moving(base)
    ema = learnt(model, drawing(args, load_frozen(args, device)), args)
    ema.save_motion_modules(str(out / "final"))
    learned = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
    reported = loop.report(REPORT, replace(args, out=out), {"motion": learned}, _batch(args), {})
    print(f"motion: written to {out / 'final'}, {reported}")


def _batch(args: Options) -> int:
    return args.batch or 4


def moving(base: Any) -> Any:
    """The UNet with motion modules that do nothing yet, of which those at the finer levels are learned."""
    config = base.config
    adapter = MotionAdapter(
        block_out_channels=tuple(config.block_out_channels), motion_layers_per_block=config.layers_per_block,
        motion_num_attention_heads=config.attention_head_dim, motion_norm_num_groups=config.norm_num_groups,
        motion_max_seq_length=MOST, use_motion_mid_block=False,
    )  # fmt: skip
    model: Any = UNetMotionModel.from_unet2d(base, adapter)
    model.freeze_unet2d_params()
    kept = [*model.down_blocks[:DOWN], *model.up_blocks[-UP:]]
    for block in (*model.down_blocks, *model.up_blocks):
        for module in block.motion_modules:
            if any(block is other for other in kept):
                _begin(module)
            else:
                _nothing(module, _as_it_is)
    quicken(model)
    return model.train()


@torch.no_grad()
def _begin(module: Any) -> None:
    """The average of what is near and alike, which is subtracted from what is there and then written by zero."""
    nn.init.zeros_(module.proj_out.weight)
    nn.init.zeros_(module.proj_out.bias)
    module.proj_in.weight.copy_(LOUD * torch.eye(len(module.proj_in.weight)))
    nn.init.zeros_(module.proj_in.bias)
    for block in module.transformer_blocks:
        for attention, sign in ((block.attn1, -LOUD), (block.attn2, LOUD)):
            for matrix, much in ((attention.to_q, ALIKE), (attention.to_k, ALIKE), (attention.to_v, 1.0)):
                matrix.weight.copy_(much * torch.eye(len(matrix.weight)))
            attention.to_out[0].weight.copy_(sign * torch.eye(len(matrix.weight)))
            nn.init.zeros_(attention.to_out[0].bias)
        nn.init.zeros_(block.attn2.to_out[0].weight)  # the first alone begins with an average
        block.attn1.to_out[0].bias.copy_(LOUD * block.pos_embed.pe[0].mean(0))  # without that of when they are
        for part in (block.norm3, block.ff):
            _nothing(part)
        block.ff.forward = torch.zeros_like
        block.pos_embed = Instants(block.pos_embed.pe)


def _nothing(module: nn.Module, forward: Any = None) -> None:
    """All its weights are zero and stay so; and it runs as ``forward``."""
    for p in module.parameters():
        nn.init.zeros_(p)
        p.requires_grad_(False)
    if forward is not None:
        module.forward = forward


def _as_it_is(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


class Instants(nn.Module):
    """Adds to frames the code of when they are: of each clip's own instants while they are set, else one by one."""

    def __init__(self, pe: Float[Tensor, "1 n d"]) -> None:
        super().__init__()
        self.register_buffer("pe", pe)
        self.at: Int[Tensor, "clips frames"] | None = None

    def forward(self, x: Float[Tensor, "places frames d"]) -> Float[Tensor, "places frames d"]:
        pe: Any = self.pe
        if self.at is None:
            return x + pe[:, : x.shape[1]]
        codes = pe[0, self.at]
        return x + codes.repeat_interleave(len(x) // len(codes), 0)


def instants(model: nn.Module) -> Iterator[Instants]:
    return (module for module in model.modules() if isinstance(module, Instants))


def learnt(model: Any, draw: Draw, args: Options) -> Any:
    """The adapter's running mean after the run that the options ask for."""
    device, batch = model.device, _batch(args)
    diffuse = noiser(device, args.weighting)

    def step(i: int) -> tuple[Tensor, dict[str, Tensor]]:
        z, text, at = draw(i, batch)
        frames = z.shape[1]
        noise = alike(torch.randn_like(z), torch.randn_like(z[:, :1]), i)
        noisy = diffuse(*(x.transpose(1, 2).flatten(2, 3) for x in (z, noise)))  # frames as rows: of one level
        for each in instants(model):
            each.at = at
        with autocast(device):
            clips = noisy.z.unflatten(2, (frames, -1))
            prediction = model(clips, noisy.t, text.repeat_interleave(frames, 0)).sample.flatten(2, 3)
        return noisy.loss(prediction), {}

    ema = loop.fit("motion", {"motion": model}, step, args, rate=1e-3, batch=batch, ema=0.99)["motion"]
    for each in instants(ema):
        each.at = None
    return ema


def alike(own: Float[Tensor, "b f c h w"], common: Float[Tensor, "b 1 c h w"], step: int) -> Float[Tensor, "b f c h w"]:
    """The frames' noise: their own, and in every second clip with a part ``SHARED`` of variance in common."""
    share = SHARED * ((torch.arange(len(own), device=own.device) + step) % 2).view(-1, 1, 1, 1, 1)
    return (1 - share).sqrt() * own + share.sqrt() * common


def drawing(args: Options, frozen: Frozen) -> Draw:
    """(step, size) -> scaled latents (size, frames, 4, 16, 16) of clips, their embedded captions and their instants.

    New geometries are rendered as the run goes on, and what was rendered is kept in ``DATA/clips``.
    """
    place = args.data / "clips"

    def draw(step: int, size: int) -> tuple[Float[Tensor, "b f 4 h w"], Float[Tensor, "b 77 d"], Int[Tensor, "b f"]]:
        rng = np.random.default_rng((args.seed, step, 9))
        clips, words, when = [], [], []
        for j in range(size):
            known = 1 + (step * size + j) // USES
            z, at, scenes = kept(place, int(rng.integers(known)), args.seed, frozen)
            dress, back = int(rng.integers(len(z))), rng.random() < 0.5
            clips.append(z[dress].flip(0) if back else z[dress])
            when.append(MOST - 1 - at.flip(0) if back else at)
            words.append("" if rng.random() < EMPTY else caption(scenes[dress], rng))
        z, at = (torch.stack(x).to(frozen.device) for x in (clips, when))
        return z.float(), frozen.embed(words), at

    return draw


def kept(place: Path, index: int, seed: int, frozen: Frozen) -> tuple[Tensor, Tensor, list[Scene]]:
    """Clips of one geometry in several appearances: latents, instants, and the scenes in their middle."""
    file = place / f"{index:05d}.safetensors"
    lines = file.with_suffix(".jsonl")
    if not file.is_file():
        z, at, scenes = rendered(np.random.default_rng((seed, index, 10)), frozen)
        writable(place)
        write_text(lines, "".join(s.to_json() + "\n" for s in scenes))
        with atomic(file) as part:  # last, so that what exists is whole
            save_file({"latents": z.half().contiguous(), "instants": at}, part)
    found = load_file(file)
    scenes = [Scene.from_json(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    return found["latents"], found["instants"], scenes


def rendered(rng: np.random.Generator, frozen: Frozen) -> tuple[Tensor, Tensor, list[Scene]]:
    """``kept``, made anew: traced once, shaded in each appearance."""
    from sfumato.stilllife import render

    bare = sample_scene(rng)
    at = np.sort(rng.choice(MOST, FRAMES, replace=False))
    clip = moved(bare, rng)
    dressed = [bare, *(redress(bare, rng) for _ in range(DRESSES - 1))]
    buffers = render.trace([clip[k] for k in at], device=frozen.device)
    z = [latents(frozen.vae, render.shade(buffers, [_dress(clip[k], scene) for k in at])) for scene in dressed]
    return torch.stack(z).cpu(), torch.from_numpy(at), dressed


def _dress(scene: Scene, like: Scene) -> Scene:
    """The scene with another's appearance."""
    things = tuple(
        replace(t, colour=other.colour, material=other.material)
        for t, other in zip(scene.things, like.things, strict=True)
    )
    looks = {key: getattr(like, key) for key in ("ground", "light", "style", "seed")}
    return replace(scene, things=things, **looks)


def moved(scene: Scene, rng: np.random.Generator, frames: int = MOST) -> list[Scene]:
    """A clip round a scene, which is in its middle: the camera swings by, and things turn where they stand."""
    swing = float(rng.uniform(*SWING) * rng.choice((-1, 1)))
    turns = [float(rng.uniform(-TURN, TURN)) for _ in scene.things]

    def at(part: float) -> Scene:
        things = tuple(replace(t, yaw=t.yaw + part * turn) for t, turn in zip(scene.things, turns, strict=True))
        camera = replace(scene.camera, azimuth=scene.camera.azimuth + part * swing)
        return replace(scene, camera=camera, things=things)

    return moves.between(at(-0.5), at(0.5), frames)
