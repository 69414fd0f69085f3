"""Stable Diffusion 1.x, 2.x, XL, InstructPix2Pix and their kind: a UNet2DConditionModel on the latents of a VAE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.attention import Site
from sfumato.backbones import Cond
from sfumato.backbones.latent import Latent
from sfumato.errors import SfumatoError

_STAGES = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}


class UNet(Latent):
    """Its network is a ``UNet2DConditionModel``; taps see 32 sites in Stable Diffusion 1 and 2, 140 in SDXL."""

    def __init__(self, name: str, pipe: Any):
        super().__init__(name, pipe, pipe.unet, pipe.tokenizer)
        self.text_encoder = pipe.text_encoder
        self.sites = sites(self.network)

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if masked else None
        return {"text": self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]}

    def added(self, x: Tensor, cond: Cond) -> dict[str, Tensor]:
        """What the network reads beside text, by its own names."""
        return {}

    def predict(self, x: Float[Tensor, "b c h w"], t: float | Float[Tensor, "b"], cond: Cond) -> Tensor:
        dtype = self.network.dtype
        time = t if isinstance(t, Tensor) else torch.tensor(t, device=x.device)
        self.rows(x, cond)
        added = self.added(x, cond)
        more: dict[str, Any] = {"added_cond_kwargs": added} if added else {}
        for control in cond.controls:
            for key, value in control(x, time, cond).items():
                more[key] = _added(more[key], value) if key in more else value
        inside = x if cond.image is None else torch.cat([x, cond.image], 1)
        if inside.shape[1] != (wanted := self.network.config.in_channels):
            raise SfumatoError(
                f"{self.name} reads {wanted} channels, got {inside.shape[1]}; "
                + ("it needs an image as condition" if cond.image is None else "it takes no image as condition")
            )
        text = cond.text.to(dtype)
        return self.network(inside.to(dtype), time, encoder_hidden_states=text, return_dict=False, **more)[0].float()


class SDXL(UNet):
    """Stable Diffusion XL: two text encoders, a pooled text, and the size that an image was trained at."""

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        text, _, pooled, _ = self.pipe.encode_prompt(prompts, device=self.device, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def added(self, x: Tensor, cond: Cond) -> dict[str, Tensor]:
        height, width = (n * self.factor for n in x.shape[-2:])
        ids = torch.tensor([height, width, 0, 0, height, width], device=x.device, dtype=cond.text.dtype)
        return {"text_embeds": cond.extra["pooled"], "time_ids": ids.expand(len(x), -1)}


@dataclass(frozen=True)
class ControlNet:
    """A ControlNet on a picture of what it steers by, in [0, 1]; ``scale`` weighs what it adds."""

    network: Any
    image: Float[Tensor, "1 3 H W"]
    scale: float = 1.0

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Mapping[str, Any]:
        dtype = self.network.dtype
        image = self.image.to(x.device, dtype).expand(len(x), -1, -1, -1)
        text = cond.text.to(dtype)
        down, mid = self.network(x.to(dtype), t, text, image, conditioning_scale=self.scale, return_dict=False)
        return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": mid}


def _added(a: Any, b: Any) -> Any:
    """Residuals of several controls add up."""
    return tuple(_added(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else a + b


def sites(network: Any) -> tuple[Site, ...]:
    """The attention calls of a UNet2DConditionModel in the order in which they run."""
    from diffusers.models.attention_processor import Attention

    depth = len(network.down_blocks)
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    found = [(path, m) for path, m in network.named_modules() if isinstance(m, Attention)]
    found.sort(key=lambda item: order[item[0].split(".")[0]])  # stable: within a stage as they are listed
    out = []
    for index, (path, module) in enumerate(found):
        part, number = path.split(".")[:2]
        level = {"down_blocks": 0, "mid_block": depth - 1, "up_blocks": depth - 1}[part]
        if part != "mid_block":
            level = int(number) if part == "down_blocks" else level - int(number)
        key: tuple[str, ...] = ("text",) if path.endswith("attn2") else ("image",)
        if module.added_kv_proj_dim is not None:  # DeepFloyd IF: one attention over text and image
            key = ("text", "image")
        out.append(Site(path, index, _STAGES[part], ("image",), key, 2**level, module.heads))
    return tuple(out)
