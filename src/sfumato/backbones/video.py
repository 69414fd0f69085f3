"""Stable Video Diffusion: a clip from a picture, by a UNet that attends over space and time in turns.

Blattmann et al. 2023 (arXiv 2311.15127). It reads no words: ``model.of(picture)`` is the model that goes on from a
picture, told how many frames a second there are, how much moves, and how much noise the picture was given. As in
``sfumato.backbones.motion`` the images of a run are frames, and are folded into clips for the network alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones import autoencoders
from sfumato.backbones.latent import Latent
from sfumato.backbones.motion import check_clips, of_clips
from sfumato.backbones.parts import of_parts
from sfumato.backbones.unet import STAGES, halved, residuals
from sfumato.core.backbone import dtype_of
from sfumato.core.conditions import Cond
from sfumato.core.guidance import FrameCFG
from sfumato.core.modes import unmoded
from sfumato.core.noise import drawing
from sfumato.core.sites import Layer, Site, token_layers
from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from typing_extensions import Self

_IDS = "frames a second, motion, noise"  # in Cond.extra
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that CLIP was trained on, which its image encoders expect to be taken out."""


class Video(Latent):
    """Its network is a ``UNetSpatioTemporalConditionModel``. Cross-attention is no site: it has one key, the picture,
    so that its probabilities are 1."""

    kind = "Video"
    text_tokens = 0  # pyright: ignore[reportAssignmentType]

    @of_parts("network")
    def sites(self) -> tuple[Site, ...]:
        return sites(self.network)

    @of_parts("network")
    def layers(self) -> tuple[Layer, ...]:
        return (*token_layers(self.sites, self.network), *residuals(self.network))

    @property
    def frames(self) -> int:
        return self.network.config.num_frames

    def guided(self, scale: float | None) -> FrameCFG:
        return FrameCFG() if scale is None else FrameCFG(last=scale)

    def words(self, prompt: str) -> list[Any]:
        return []

    def check_change(self, source: str, target: str) -> None:
        """It reads neither."""

    def embed(self, prompts: Sequence[str]) -> Cond:
        raise SfumatoError(
            f"{self.name} goes on from a picture; give it one: denoise(model.of(picture), '', frames={self.frames})"
        )

    def embed_negative(self, prompts: Sequence[str]) -> Cond:
        return self.embed(prompts)

    def _encode(self, prompts: list[str], skip: int | None) -> dict[str, Tensor]:
        return {}

    @unmoded()
    @torch.no_grad()
    def of(
        self,
        pictures: Float[Tensor, "3 H W"] | Float[Tensor, "n 3 H W"],
        fps: int = 7,
        motion: int = 127,
        noise: float = 0.02,
        seed: int = 0,
    ) -> Self:
        """This model as it goes on from a picture in [0, 1], or from one a clip of a stream.

        ``fps``: frames a second. ``motion``: how much moves, from 1 to 255. ``noise``: deviation of what is added to
        the pixels, drawn by ``seed``; the more, the freer is the clip. Defaults are the authors'.
        """
        pictures = pictures[None] if pictures.ndim == 3 else pictures
        self.check_images(pictures)
        if fps < 1 or noise < 0:
            raise SfumatoError(f"a clip has at least 1 frame a second and noise from 0, got {fps} and {noise:g}")
        pictures = pictures.to(self.device, torch.float32)
        drawn = drawing(range(seed, seed + len(pictures)), pictures.shape[1:])().to(pictures)
        noisy = pictures + noise / 2 * drawn  # of [0, 1]
        seen = autoencoders.plain(self.vae, self.encode(noisy))
        encoder = self.pipe.image_encoder
        side = encoder.config.image_size
        mean, deviation = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (MEAN, DEVIATION))
        small = (shrunk(pictures, (side, side)) - mean) / deviation
        embedded = encoder(small.to(dtype_of(encoder))).image_embeds[:, None].float()
        ids = torch.tensor([fps - 1, motion, noise], device=self.device, dtype=torch.float32)  # as it was trained

        def rows(keep: float) -> Callable[[Sequence[str]], Cond]:
            def made(prompts: Sequence[str]) -> Cond:
                if prompt := next(filter(None, prompts), None):
                    what = "paints without words, so its only prompt is the empty one"
                    raise SfumatoError(f"{self.name} {what}, not {prompt!r}")
                times, rest = divmod(len(prompts), len(pictures))
                if rest:
                    raise SfumatoError(f"{len(pictures)} pictures are of as many clips, not of {len(prompts)} images")
                text, image = (keep * x.repeat_interleave(times, 0) for x in (embedded, seen))
                return Cond(text, tuple(prompts), {_IDS: ids.expand(len(prompts), -1)}, image=image)

            return made

        other = copy(self)
        seeing, blind = rows(1.0), rows(0.0)
        other.embed = lambda prompts: seeing(prompts)
        other.embed_negative = lambda prompts: blind(prompts)
        return other

    def inside(self, x: Float[Tensor, "b c h w"], cond: Cond) -> Float[Tensor, "b d h w"]:
        check_clips(self, x, cond)
        return super().inside(x, cond)

    def _predict(self, x: Tensor, inside: Tensor, time: Tensor, cond: Cond) -> Tensor:
        n = cond.frames
        clips, text = inside.to(self.dtype).unflatten(0, (-1, n)), of_clips(cond.text, n).to(self.dtype)
        ids = of_clips(cond.extra[_IDS], n).to(self.dtype)
        out = self.network(clips, of_clips(time, n), encoder_hidden_states=text, added_time_ids=ids, return_dict=False)
        return out[0].flatten(0, 1)


def sites(network: Any) -> tuple[Site, ...]:
    """The self-attention of a UNetSpatioTemporalConditionModel in the order in which it runs."""
    from diffusers.models.attention_processor import Attention

    depth, modules = len(network.down_blocks), network.named_modules()
    found = [(path, m) for path, m in modules if isinstance(m, Attention) and path.endswith("attn1")]
    out = []
    for index, (path, module) in enumerate(sorted(found, key=_place)):
        part, number = path.split(".")[:2]
        axis = "time" if ".temporal_transformer_blocks." in path else "space"
        scale, dim = 2 ** halved(part, number, depth), module.inner_dim // module.heads
        out.append(Site(path, index, STAGES[part], ("image",), ("image",), scale, module.heads, dim, axis=axis))
    return tuple(out)


def _place(item: tuple[str, Any]) -> tuple[Any, ...]:
    """Down, middle, up; in each transformer a block over space, then the one over time."""
    part, *rest = item[0].split(".")
    block = [int(rest.pop(0))] if part != "mid_block" else []
    _, layer, kind, number, _ = rest
    return list(STAGES).index(part), block, int(layer), int(number), kind.startswith("temporal")


def shrunk(images: Float[Tensor, "b 3 H W"], size: tuple[int, int]) -> Float[Tensor, "b 3 h w"]:
    """Images at another size as this model's image encoder was given them: what no longer fits is blurred away first.

    The blur's deviation is half of what an image shrinks by beyond its size, its window of twice that to each side.
    """
    out = images
    for axis, side in ((-2, size[0]), (-1, size[1])):
        deviation = max((images.shape[axis] / side - 1) / 2, 1e-3)
        width = int(max(4 * deviation, 3)) | 1
        at = torch.arange(width, device=images.device) - width // 2
        kernel = (-(at**2) / (2 * deviation**2)).exp()
        shape, pad = ((1, 1, -1, 1), (0, 0)) if axis == -2 else ((1, 1, 1, -1), (0, 0))
        pad = (*pad, width // 2, width // 2) if axis == -2 else (width // 2, width // 2, *pad)
        padded = F.pad(out, pad, mode="reflect").flatten(0, 1)[:, None]
        out = F.conv2d(padded, (kernel / kernel.sum()).view(shape)).unflatten(0, images.shape[:2])[:, :, 0]
    return F.interpolate(out, size, mode="bicubic", align_corners=True)
