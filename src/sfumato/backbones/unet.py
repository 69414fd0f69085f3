"""Stable Diffusion 1.x, 2.x, InstructPix2Pix and their kind: a UNet2DConditionModel on the latents of a VAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.attention import Site
from sfumato.backbones import Backbone, Cond
from sfumato.errors import SfumatoError
from sfumato.schedule import Schedule

_STAGES = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}


class UNet(Backbone):
    """Of a diffusers pipeline's parts: ``unet``, ``vae``, ``text_encoder``, ``tokenizer``, ``scheduler``."""

    def __init__(self, name: str, parts: Mapping[str, Any]):
        self.name = name
        self.network: Any = parts["unet"]
        self.vae, self.text_encoder, self.tokenizer = (parts[k] for k in ("vae", "text_encoder", "tokenizer"))
        self.schedule = Schedule.read(parts["scheduler"].config)
        self.channels = self.vae.config.latent_channels
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.size = self.network.config.sample_size * self.factor
        self.sites = sites(self.network)
        self.text_tokens = self.tokenizer.model_max_length
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Cond:
        new = [p for p in dict.fromkeys(prompts) if p not in self._known]
        if new:
            length = self.tokenizer.model_max_length
            tokens = self.tokenizer(new, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            masked = getattr(self.text_encoder.config, "use_attention_mask", False)
            mask = tokens.attention_mask.to(self.device) if masked else None
            text = self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]
            if len(self._known) > 1000:  # a bench of many prompts
                self._known.clear()
            self._known |= dict(zip(new, text, strict=True))
        return Cond(torch.stack([self._known[p] for p in prompts]), tuple(prompts))

    def predict(self, x: Float[Tensor, "b c h w"], t: float | Float[Tensor, "b"], cond: Cond) -> Tensor:
        dtype = self.network.dtype
        time = t if isinstance(t, Tensor) else torch.tensor(t, device=x.device)
        if len(cond) != len(x):
            raise SfumatoError(f"{len(x)} images need {len(x)} rows of conditions, got {len(cond)}")
        more: dict[str, Any] = {}
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

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        pixels = (images * 2 - 1).to(self.device, self.vae.dtype)
        return self.vae.encode(pixels).latent_dist.mean.float() * self.vae.config.scaling_factor

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        z = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        return (self.vae.decode(z, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    def words(self, prompt: str) -> list[tuple[str, slice]]:
        def ids(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

        out, at = [], 1  # after the start token
        for word in prompt.split():
            n = len(ids(word))
            out.append((word, slice(at, at + n)))
            at += n
        if at - 1 != len(ids(prompt)):
            raise SfumatoError(f"the tokenizer of {self.name} does not split {prompt!r} at its spaces")
        most = self.tokenizer.model_max_length - 1  # the last one is the end token's
        return [(word, span) for word, span in out if span.stop <= most]


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
        out.append(Site(path, index, _STAGES[part], ("image",), key, 2**level, module.heads))
    return tuple(out)
