"""Stable Diffusion 1.x, 2.x, XL, InstructPix2Pix and their kind: a UNet2DConditionModel on the latents of a VAE."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.backbones.latent import Latent
from sfumato.backbones.parts import default, of_parts
from sfumato.backbones.text import Reader, Text, bound
from sfumato.core.conditions import Cond
from sfumato.core.sites import Layer, Site, token_layers
from sfumato.errors import SfumatoError

_SCORE = "aesthetic score"  # in Cond.extra
_PROMPT = "image prompt "  # in Cond.extra, and the number of the adapter
STAGES = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}


class OfUNet:
    """What taps find in a UNet of diffusers', with or without words."""

    network: Any

    @of_parts("network")
    def sites(self) -> tuple[Site, ...]:
        return sites(self.network)

    @of_parts("network")
    def layers(self) -> tuple[Layer, ...]:
        return (*token_layers(self.sites, self.network), *residuals(self.network), *hiddens(self.network))


class UNet(OfUNet, Latent):
    """Its network is a ``UNet2DConditionModel``; taps see 32 sites in Stable Diffusion 1 and 2, 140 in SDXL."""

    kind = "UNet"
    skips = learns = True
    steered = ("ControlNetModel",)

    @of_parts("pipe", "pipe.tokenizer", "pipe.tokenizer_2", "own")
    def text(self) -> Text:
        bound(self.pipe)
        found = [part for part in ("tokenizer", "tokenizer_2") if getattr(self.pipe, part, None) is not None]
        readers = [Reader(part, getattr(self.pipe, part).model_max_length) for part in found]
        return Text(self.name, self.pipe, readers, own=None if self.own is None else self.own.tokens)

    @property
    def text_encoder(self) -> Any:
        return self.pipe.text_encoder

    def _encode(self, prompts: list[str], skip: int | None) -> dict[str, Tensor]:
        if (convert := getattr(self.pipe, "maybe_convert_prompt", None)) is not None:
            prompts = convert(prompts, self.tokenizer)
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if masked else None
        found = self.text_encoder(
            tokens.input_ids.to(self.device), attention_mask=mask, output_hidden_states=skip is not None
        )
        if skip is None:
            return {"text": found[0]}
        return {"text": self.last_norm(found.hidden_states[-1 - skip])}

    @property
    def last_norm(self) -> Any:
        return getattr(
            self.text_encoder, "text_model", self.text_encoder
        ).final_layer_norm  # text_model: transformers 4

    def added(self, x: Tensor, cond: Cond) -> dict[str, Tensor]:
        """What the network reads beside text, by its own names."""
        return {}

    @of_parts("network", "schedule")
    def distilled(self) -> float | None:
        """LCM's networks read their guidance as an input."""
        if self.network.config.time_cond_proj_dim is None:
            return super().distilled
        return default(self.pipe.__call__, "guidance_scale")

    def _told(self, cond: Cond) -> dict[str, Tensor]:
        """The guidance, of a network that reads it: waves of guidance - 1, as of a time."""
        width = self.network.config.time_cond_proj_dim
        if width is None:
            return {}
        own = torch.full((len(cond),), self.distilled or 1.0, device=cond.text.device)
        scales = cond.extra.get("guidance", own)
        waves = (-math.log(1e4) * torch.arange(width // 2, device=scales.device) / (width // 2 - 1)).exp()
        at = 1000 * (scales.float() - 1)[:, None] * waves
        return {"timestep_cond": F.pad(torch.cat([at.sin(), at.cos()], 1), (0, width % 2)).to(self.dtype)}

    def _predict(self, x: Tensor, inside: Tensor, time: Tensor, cond: Cond) -> Tensor:
        dtype, added = self.dtype, self.added(x, cond)
        more = self._told(cond) | self.controlled(x, time, cond)
        images = self._image_prompts(cond)
        if added or images:
            more["added_cond_kwargs"] = {**added, **({"image_embeds": images} if images else {})}
        text = cond.text.to(dtype)
        return self.network(inside.to(dtype), time, encoder_hidden_states=text, return_dict=False, **more)[0]

    @property
    def masks(self) -> bool:
        """Does it read a mask and what of an image is outside of it, as inpainting checkpoints do?"""
        return self.reads == 2 * self.channels + 1

    def with_mask(
        self, cond: Cond, image: Float[Tensor, "b 3 H W"], mask: Float[Tensor, "b H W"] | Bool[Tensor, "b H W"]
    ) -> Cond:
        """Conditions of an inpainting checkpoint: images in [0, 1], and 1 where they are painted anew.

        One of each or as many as ``cond``, at the size of what is painted. The network reads the mask and the latents
        of the image without what is masked. Raises ``SfumatoError`` for other checkpoints and for sizes that differ.
        """
        if not self.masks:
            raise SfumatoError(
                f"{self.name} reads {self.reads} channels and no mask; an inpainting checkpoint reads "
                f"{2 * self.channels + 1}. BlendedLatents paints inside of a mask with any model"
            )
        if image.shape[-2:] != mask.shape[-2:]:
            sizes = " and ".join(f"{x.shape[-2]} x {x.shape[-1]}" for x in (image, mask))
            raise SfumatoError(f"an image and its mask are of one size, got {sizes}")
        self.check_images(image)
        masked = (mask >= 0.5 if mask.is_floating_point() else mask.bool()).to(self.device)[:, None]
        with torch.no_grad():
            seen = self.encode((image.to(self.device) * ~masked) + 0.5 * masked)  # grey: zero in [-1, 1]
        small = torch.nn.functional.interpolate(masked.to(seen), seen.shape[-2:])
        return replace(cond, image=torch.cat([cond.spread(each) for each in (small, seen)], 1))

    @property
    def beside(self) -> str:
        if self.masks:
            return (
                "it needs an image and a mask as condition: model.given(lambda cond: model.with_mask(cond, image, "
                "mask)), sfumato generate --inpaint PICTURE --mask MASK, or sfumato edit PICTURE --mask MASK"
            )
        return "it needs an image as condition, as InstructPix2Pix gives it"

    def with_image_prompt(self, cond: Cond, *embeds: Float[Tensor, "b n d"], blind: Sequence[str] = ("",)) -> Cond:
        """Conditions with image prompts for the IP-Adapters that diffusers has loaded, one ``embeds`` an adapter.

        ``embeds``: what the adapter's image encoder says of n images, one row or as many as ``cond``. Rows whose prompt
        is among ``blind`` see zeros, as the adapters were trained (Ye et al. 2023, section 3.2): the empty prompt of
        guidance, and where there is one, the negative prompt.
        """
        sees = torch.tensor([p not in blind for p in cond.prompts], device=cond.text.device)
        rows = {
            f"{_PROMPT}{i}": each.to(cond.text).expand(len(cond), *each.shape[1:])
            * sees.view(-1, *[1] * (each.ndim - 1))
            for i, each in enumerate(embeds)
        }
        return replace(cond, extra={**cond.extra, **rows})

    def _image_prompts(self, cond: Cond) -> list[Tensor]:
        """What each IP-Adapter of the network reads."""
        proj = getattr(self.network, "encoder_hid_proj", None)
        adapters = len(getattr(proj, "image_projection_layers", ()))
        given = [v.to(self.dtype) for k, v in cond.extra.items() if k.startswith(_PROMPT)]
        if len(given) != adapters:
            raise SfumatoError(
                f"{self.name} carries {adapters} IP-Adapters and got {len(given)} image prompts; "
                "model.given(lambda cond: model.with_image_prompt(cond, embeds)) gives one to each"
            )
        return given


class Depth(UNet):
    """Stable Diffusion 2's depth model: a depth map is a fifth channel beside the latents."""

    kind = "Depth"

    def with_depth(
        self, cond: Cond, depth: Float[Tensor, "b h w"], height: int | None = None, width: int | None = None
    ) -> Cond:
        """Conditions with depth maps, one or as many as ``cond``: any size and any scale, larger is nearer.

        Each is brought to the latents of an image of this height and width (the model's own unless said) and to
        [-1, 1] by itself, as it was when the model was trained.
        """
        size = ((height or self.size) // self.factor, (width or self.size) // self.factor)
        small = torch.nn.functional.interpolate(
            depth[:, None].to(self.device, torch.float32), size, mode="bicubic", align_corners=False
        )
        low, high = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
        if (low == high).any():
            raise SfumatoError("a depth map is the same everywhere, so it says nothing of what is near")
        return replace(cond, image=cond.spread(2 * (small - low) / (high - low) - 1))

    @property
    def beside(self) -> str:
        return "it needs an image as condition, a depth map: model.given(lambda cond: model.with_depth(cond, depth))"


class SDXL(UNet):
    """Stable Diffusion XL: two text encoders, a pooled text, and the size that an image was trained at."""

    kind = "SDXL"
    steered = ("ControlNetModel", "ControlNetUnionModel")
    usual_cells = 128
    vae_reads = ("latents_mean", "latents_std")
    scores = (6.0, 2.5)
    """How beautiful images of prompts are, and of negative ones, as the refiner reads it; diffusers' own."""

    @property
    def skips(self) -> bool:  # InstructPix2Pix's pipeline cannot
        return "clip_skip" in inspect.signature(self.pipe.encode_prompt).parameters

    @property
    def last_norm(self) -> Any:
        return None  # its text is what the last layers but one give

    def _encode(self, prompts: list[str], skip: int | None) -> dict[str, Tensor]:
        options = {} if skip is None else {"clip_skip": skip}
        text, _, pooled, _ = self.pipe.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False, **options
        )
        return {"text": text, "pooled": pooled}

    def _completed(self, cond: Cond, negative: bool) -> Cond:
        prompts = cond.prompts
        if negative and self.pipe.config.force_zeros_for_empty_prompt:
            kept = torch.tensor([bool(prompt) for prompt in prompts], device=cond.text.device)
            pooled = cond.extra["pooled"] * kept[:, None]
            cond = replace(cond, text=cond.text * kept[:, None, None], extra={**cond.extra, "pooled": pooled})
        if not self.scored:
            return cond
        score = torch.full((len(prompts),), self.scores[negative], device=self.device)
        return replace(cond, extra={**cond.extra, _SCORE: score})

    @property
    def scored(self) -> bool:
        """Does it read how beautiful an image is, as the refiner does, in place of the image's size in the end?"""
        numbers = self.network.add_embedding.linear_1.in_features - self.pipe.text_encoder_2.config.projection_dim
        return numbers == 5 * self.network.config.addition_time_embed_dim

    def added(self, x: Tensor, cond: Cond) -> dict[str, Tensor]:
        height, width = (n * self.factor for n in x.shape[-2:])
        ids = torch.tensor([height, width, 0, 0, height, width], device=x.device, dtype=cond.text.dtype)
        ids = ids.expand(len(x), -1)
        if self.scored:
            ids = torch.cat([ids[:, :4], cond.extra[_SCORE].to(ids)[:, None]], 1)
        return {"text_embeds": cond.extra["pooled"].to(self.dtype), "time_ids": ids}


def sites(network: Any) -> tuple[Site, ...]:
    """The attention calls of a UNet2DConditionModel in the order in which they run."""
    from diffusers.models.attention_processor import Attention

    depth = len(network.down_blocks)
    found = _in_order(network, Attention)
    out = []
    for index, (path, module) in enumerate(found):
        part, number = path.split(".")[:2]
        key: tuple[str, ...] = ("text",) if path.endswith("attn2") else ("image",)
        if module.added_kv_proj_dim is not None:  # DeepFloyd IF: one attention over text and image
            key = ("text", "image")
        scale, dim = 2 ** halved(part, number, depth), module.inner_dim // module.heads
        out.append(Site(path, index, STAGES[part], ("image",), key, scale, module.heads, dim))
    return tuple(out)


def residuals(network: Any) -> tuple[Layer, ...]:
    """What the ResNets of a UNet2DConditionModel add, in the order in which they run."""
    from diffusers.models.resnet import ResnetBlock2D

    depth = len(network.down_blocks)
    found = [(path, m) for path, m in _in_order(network, ResnetBlock2D) if ".resnets." in path]
    out = []
    for index, (path, module) in enumerate(found):
        part, number = path.split(".")[:2]
        scale, width = 2 ** halved(part, number, depth), getattr(module.conv2, "base_layer", module.conv2).out_channels
        out.append(Layer(f"{path}.conv2", index, STAGES[part], "residual", scale, width))
    return tuple(out)


def hiddens(network: Any) -> tuple[Layer, ...]:
    """What flows on in a UNet2DConditionModel: behind each ResNet with its transformer, and each resampling.

    What the authors of papers call up block i is the last one of ``up_blocks.i``, its resampling included.
    """
    depth = len(network.down_blocks)
    found: list[Layer] = []

    def add(path: str, stage: str, level: int, width: int) -> None:
        found.append(Layer(path, len(found), stage, "hidden", 2**level, width))

    for part in ("down_blocks", "mid_block", "up_blocks"):
        if part == "mid_block":
            if network.mid_block is None:
                continue
            add(part, "mid", depth - 1, network.mid_block.resnets[-1].out_channels)
            continue
        for number, block in enumerate(getattr(network, part)):
            place, level = f"{part}.{number}", halved(part, str(number), depth)
            last, attended = len(block.resnets) - 1, len(getattr(block, "attentions", ()))
            for i, resnet in enumerate(block.resnets):
                inner = f"resnets.{i}"
                if hasattr(block, "motion_modules"):
                    inner = f"motion_modules.{i}"
                elif attended > last:
                    inner = f"attentions.{i}"
                elif attended and i == last:  # one for the whole block
                    inner = "attentions.0"
                add(f"{place}.{inner}", STAGES[part], level, resnet.out_channels)
            moved = (("downsamplers.0", 1), ("upsamplers.0", -1))
            if hasattr(block, "skip_conv"):  # NCSN++'s, beside whose features an image goes down and up
                moved = (("resnet_down", 1), ("resnet_up", -1))
            for path, by in moved:
                if getattr(block, path.split(".")[0], None):
                    add(f"{place}.{path}", STAGES[part], level + by, block.resnets[-1].out_channels)
    return tuple(found)


def _in_order(network: Any, kind: type) -> list[tuple[str, Any]]:
    """Modules of a kind by their paths, down, middle, up: within a stage as they are listed."""
    found = [(path, m) for path, m in network.named_modules() if isinstance(m, kind)]
    return sorted(found, key=lambda item: list(STAGES).index(item[0].split(".")[0]))


def halved(part: str, number: str, depth: int) -> int:
    """How often the latents have been halved there."""
    if part == "down_blocks":
        return int(number)
    return depth - 1 - (int(number) if part == "up_blocks" else 0)
