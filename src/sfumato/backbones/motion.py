"""AnimateDiff: a UNet of Stable Diffusion 1 with motion modules, which attend over the frames of a clip.

Guo et al. 2023 (AnimateDiff, arXiv 2307.04725). The images of a run are frames: those that lie one after the other are
folded into a clip (``Cond.frames``) for the network alone, and everything else takes them as images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.backbones import folder, hub, motion_files
from sfumato.backbones.parts import of_parts
from sfumato.backbones.unet import STAGES, UNet, halved
from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.io.terminal import without

WEIGHTS, STRIDE = "weights of a window's frames", "frames between windows"  # in Cond.extra
_MODULES = "motion_modules"
BUILT_IN = "stilllife"  # the adapter that ships


class Motion(UNet):
    """Its network is a ``UNetMotionModel``; taps see its attention over time as sites of that axis."""

    kind = "Motion"
    shorter = "take fewer, or the method FreeNoise, which lets it attend over windows of them"

    @of_parts("network")
    def sites(self) -> tuple[Site, ...]:
        return sites(self.network)

    @property
    def frames(self) -> int:
        return self.network.config.motion_max_seq_length

    def _predict(self, x: Tensor, inside: Tensor, time: Tensor, cond: Cond) -> Tensor:
        n = cond.frames
        more = {k: of_clips(v, n) for k, v in self._told(cond).items()} | self.controlled(x, time, cond)
        if images := self._image_prompts(cond):
            more["added_cond_kwargs"] = {"image_embeds": [of_clips(each, n) for each in images]}
        clips = inside.to(self.dtype).unflatten(0, (-1, n)).transpose(1, 2)
        text = cond.text.to(self.dtype)
        with windowed(self.network, cond):
            out = self.network(clips, of_clips(time, n), encoder_hidden_states=text, return_dict=False, **more)[0]
        return out.transpose(1, 2).flatten(0, 1)

    def inside(self, x: Float[Tensor, "b c h w"], cond: Cond) -> Float[Tensor, "b d h w"]:
        check_clips(self, x, cond)
        return super().inside(x, cond)


def check_clips(model: Backbone, x: Tensor, cond: Cond) -> None:
    """Raise ``SfumatoError`` for images that are no clips, or longer ones than a model has."""
    if len(x) % cond.frames:
        raise SfumatoError(f"{len(x)} images are no clips of {cond.frames} frames; give as many for each clip")
    model.check_frames(cond.frames, longer=WEIGHTS in cond.extra)


def of_clips(rows: Float[Tensor, "b *shape"], frames: int) -> Float[Tensor, "clips *shape"]:
    """What the frames of each clip share. ``SfumatoError`` where they do not: the network reads it once a clip."""
    first = rows[::frames]
    if rows.stride(0) and not torch.equal(first.repeat_interleave(frames, 0), rows):
        raise SfumatoError("the frames of a clip have one time, one guidance and one image prompt; give them the same")
    return first


def sites(network: Any) -> tuple[Site, ...]:
    """The attention calls of a UNetMotionModel in the order in which they run."""
    from diffusers.models.attention_processor import Attention

    depth = len(network.down_blocks)
    found = [(path, m) for path, m in network.named_modules() if isinstance(m, Attention)]
    out = []
    for index, (path, module) in enumerate(sorted(found, key=_place)):
        part, number = path.split(".")[:2]
        moves = f".{_MODULES}." in path
        key = "text" if path.endswith("attn2") and not moves else "image"
        scale, dim = 2 ** halved(part, number, depth), module.inner_dim // module.heads
        axis = "time" if moves else "space"
        out.append(Site(path, index, STAGES[part], ("image",), (key,), scale, module.heads, dim, axis=axis))
    return tuple(out)


def _place(item: tuple[str, Any]) -> tuple[Any, ...]:
    """Down, middle, up; in a block layer by layer, in each the image's transformer and then the motion module."""
    part, *rest = item[0].split(".")
    block = [int(rest.pop(0))] if part != "mid_block" else []
    kind, layer, *inner = rest
    return list(STAGES).index(part), block, int(layer), kind == _MODULES, int(inner[1]), inner[2]


@contextmanager
def windowed(network: Any, cond: Cond) -> Iterator[None]:
    """While the block runs, motion modules attend over windows of frames, where conditions ask for them.

    Qiu et al. 2023 (FreeNoise, arXiv 2310.15169), eq. 9: each window counts its frames from 0, and where windows
    overlap their answers are averaged by weights.
    """
    if WEIGHTS not in cond.extra:
        yield
        return
    weights, stride = cond.extra[WEIGHTS][0], int(cond.extra[STRIDE][0])
    frames = windows(cond.frames, len(weights), stride).to(weights.device)
    blocks = [b for m in network.modules() for module in getattr(m, _MODULES, ()) for b in module.transformer_blocks]
    before = [vars(block).get("forward") for block in blocks]  # accelerate's, where weights wait elsewhere
    try:
        for block in blocks:
            block.forward = partial(_in_windows, block, frames, weights)
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def windows(frames: int, length: int, stride: int) -> Int[Tensor, "windows length"]:
    """Which frames each window has; the last one ends with the clip."""
    starts = list(range(0, frames - length + 1, stride))
    if starts[-1] != frames - length:
        starts.append(frames - length)
    return torch.tensor(starts)[:, None] + torch.arange(length)


def _in_windows(
    block: Any,
    frames: Int[Tensor, "windows length"],
    weights: Float[Tensor, " length"],
    hidden_states: Float[Tensor, "places frames d"],
    **_: Any,
) -> Float[Tensor, "places frames d"]:
    """A transformer block over frames, its attention in windows."""
    whole = hidden_states
    x = whole[:, frames].flatten(0, 1)
    for norm, attend in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
        if attend is not None:
            x = attend(block.pos_embed(norm(x))) + x
    share = weights.to(x)[:, None]
    places, into = x.unflatten(0, (len(whole), -1)), frames.flatten()
    total = torch.zeros_like(whole).index_add(1, into, (places * share).flatten(1, 2))
    count = whole.new_zeros(whole.shape[1]).index_add(0, into, share[:, 0].repeat(len(frames)))
    x = total / count[:, None]
    return block.ff(block.norm3(x)) + x


def _read(motion: str, variant: str | None, dtype: Any, offline: bool) -> Any:
    if motion == BUILT_IN:
        from sfumato.stilllife import weights

        return weights.motion().to(dtype)
    if motion_files.is_file(motion):
        return motion_files.read(Path(motion), dtype)
    return folder.part(hub.find(motion, variant, offline, part="motion_adapter"), "motion_adapter", variant, dtype)


def moving(name: str, pipe: Any, motion: Any, variant: str | None, dtype: Any, offline: bool) -> Any:
    """A pipeline of Stable Diffusion 1 with an AnimateDiff adapter: in hand, a file, or a folder or id of the hub with
    one.

    Raises ``SfumatoError`` for what is no such adapter, or none for this model.
    """
    import diffusers

    unet = getattr(pipe, "unet", None)
    if isinstance(unet, diffusers.UNetMotionModel):
        raise SfumatoError(f"{name} has motion modules of its own; leave motion out")
    if not isinstance(pipe, diffusers.StableDiffusionPipeline) or not isinstance(unet, diffusers.UNet2DConditionModel):
        raise SfumatoError(f"motion adapters are of Stable Diffusion 1, and {name} is a {type(pipe).__name__}")
    adapter = motion
    if isinstance(motion, str | Path):
        adapter = _read(expanduser(str(motion)), variant, dtype or unet.dtype, offline)
    if not isinstance(adapter, diffusers.MotionAdapter):
        raise SfumatoError(f"what is given as motion is a {type(adapter).__name__}, not a MotionAdapter")
    parts = {k: v for k, v in pipe.components.items() if k not in ("unet", "safety_checker")}
    try:
        with without("diffusers.models.modeling_utils", "should be kept in float32: []"):  # nothing should
            network: Any = diffusers.UNetMotionModel.from_unet2d(unet, adapter)
    except (ValueError, RuntimeError, KeyError) as e:
        why = " ".join(line.strip() for line in str(e).splitlines()[:2])
        raise SfumatoError(f"this motion adapter is none for {name}: {why}") from e
    made = diffusers.AnimateDiffPipeline(unet=network.eval(), motion_adapter=adapter, **parts)
    made.set_progress_bar_config(disable=True)
    return made
