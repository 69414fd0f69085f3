"""Transformers on the latents of a VAE: PixArt (cross attention), Stable Diffusion 3 and Flux (joint, flows)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones import kinds
from sfumato.backbones.latent import Latent
from sfumato.backbones.parts import default, of_parts
from sfumato.backbones.text import Reader, Text, bound, t5_text
from sfumato.core.backbone import dtype_of
from sfumato.core.conditions import Cond
from sfumato.core.schedule import Levels
from sfumato.core.sites import Layer, Site, token_layers
from sfumato.errors import SfumatoError, finite


class Transformer(Latent):
    """What the three have in common."""

    @of_parts("pipe.transformer", "pipe.vae")
    def network(self) -> Any:
        kinds.check(self)
        return self.pipe.transformer

    @property
    def patch(self) -> int:
        """Side of a token, in cells of the latents."""
        return self.network.config.patch_size

    @property
    def multiple(self) -> int:
        return self.factor * self.patch

    @of_parts("network")
    def layers(self) -> tuple[Layer, ...]:
        return token_layers(self.sites, self.network)

    def levels(self, steps: int, grid: Sequence[int]) -> Levels:
        return self.schedule.levels(steps, (grid[0] // self.patch) * (grid[1] // self.patch))

    def inside(self, x: Float[Tensor, "b c h w"], cond: Cond) -> Float[Tensor, "b c h w"]:
        if any(getattr(self.network, part, None) is not None for part in ("encoder_hid_proj", "image_proj")):
            raise SfumatoError(
                f"{self.name} carries an IP-Adapter, which only the UNets of Stable Diffusion 1, 2 and XL are given "
                "images for; call pipe.unload_ip_adapter()"
            )
        return super().inside(x, cond)


class PixArt(Transformer):
    """PixArt alpha and sigma: T5 text with a mask, and a variance beside the noise."""

    kind = "PixArt"

    @of_parts("pipe", "pipe.tokenizer")
    def text(self) -> Text:
        # alpha was trained on 120 tokens, sigma on 300; its pipeline's own default says which
        return t5_text(self.name, self.pipe, default(self.pipe.__call__, "max_sequence_length"))

    @of_parts("network")
    def sites(self) -> tuple[Site, ...]:
        patch, at = self.patch, "transformer_blocks.{}.attn{}".format
        heads, dim = self.network.config.num_attention_heads, self.network.config.attention_head_dim
        return tuple(
            Site(at(i, n), 2 * i + n - 1, "blocks", ("image",), (key,), patch, heads, dim, masked=n == 2)
            for i in range(len(self.network.transformer_blocks))
            for n, key in ((1, "image"), (2, "text"))
        )

    def _encode(self, prompts: list[str], skip: int | None) -> dict[str, Tensor]:
        text, mask, *_ = self.pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.text_tokens,
            clean_caption=True,
        )
        return {"text": text, "mask": mask}

    def _predict(self, x: Tensor, inside: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.network(
            inside.to(self.dtype),
            encoder_hidden_states=cond.text.to(self.dtype),
            encoder_attention_mask=cond.extra["mask"],
            timestep=time,
            added_cond_kwargs=self._shape(x),
            return_dict=False,
        )[0]

    def _shape(self, x: Tensor) -> dict[str, Tensor | None]:
        """Height and width in pixels and their ratio, which alpha's network for 1024 pixels reads."""
        if not self.network.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (n * self.factor for n in x.shape[-2:])
        size = torch.tensor([height, width], device=x.device, dtype=self.dtype).expand(len(x), -1)
        return {"resolution": size, "aspect_ratio": (size[:, :1] / size[:, 1:])}


class SD3(Transformer):
    """Stable Diffusion 3 and 3.5: image and text attend together, the image first."""

    kind = "SD3"
    skips = True
    steered = ("SD3ControlNetModel",)
    vae_reads = ("shift_factor",)

    @of_parts("pipe", "pipe.tokenizer", "pipe.tokenizer_2", "pipe.tokenizer_3", "pipe.text_encoder_3")
    def text(self) -> Text:
        clip, t5 = self._tokens
        readers = [Reader("tokenizer", clip), Reader("tokenizer_2", clip), Reader("tokenizer_3", t5, at=clip)]
        have = [reader for reader in readers if getattr(self.pipe, reader.encoder, None) is not None]
        return Text(self.name, self.pipe, have)

    @property
    def distilled(self) -> float | None:
        """Of 3.5 Turbo only the name says so: all that it is made of is as in 3.5."""
        return 1.0 if "turbo" in self.name.lower() else super().distilled

    @property
    def _tokens(self) -> tuple[int, int]:
        """Of CLIP and of T5, which are zeros where there is none."""
        bound(self.pipe)
        return self.pipe.tokenizer_max_length, default(self.pipe.__call__, "max_sequence_length")

    @property
    def text_tokens(self) -> int:
        return sum(self._tokens)

    @of_parts("network")
    def sites(self) -> tuple[Site, ...]:
        patch, found = self.patch, list[Site]()
        for i, block in enumerate(self.network.transformer_blocks):
            for part in ("attn", "attn2"):
                if getattr(block, part, None) is not None:
                    both = ("image", "text") if part == "attn" else ("image",)
                    path, heads = f"transformer_blocks.{i}.{part}", block.attn.heads
                    dim = block.attn.inner_dim // heads
                    found.append(Site(path, len(found), "blocks", both, both, patch, heads, dim))
        return tuple(found)

    def _encode(self, prompts: list[str], skip: int | None) -> dict[str, Tensor]:
        text, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False, clip_skip=skip
        )
        return {"text": text, "pooled": pooled}

    def inputs(self, network: Any, x: Tensor, time: Tensor, cond: Cond) -> dict[str, Any]:
        """What its network, or a ControlNet of it, reads, in its own precision."""
        dtype = dtype_of(network)
        return {
            "hidden_states": x.to(dtype),
            "timestep": time,
            "encoder_hidden_states": cond.text.to(dtype),
            "pooled_projections": cond.extra["pooled"].to(dtype),
        }

    def _predict(self, x: Tensor, inside: Tensor, time: Tensor, cond: Cond) -> Tensor:
        more = self.controlled(x, time, cond)
        return self.network(**self.inputs(self.network, inside, time, cond), **more, return_dict=False)[0]


class Flux(Transformer):
    """Flux.1: text and image attend together, the text first; latents are packed two by two."""

    kind = "Flux"
    steered = ("FluxControlNetModel",)
    vae_reads = ("shift_factor",)

    @of_parts("pipe", "pipe.tokenizer", "pipe.tokenizer_2")
    def text(self) -> Text:
        bound(self.pipe)
        readers = [Reader("tokenizer_2", default(self.pipe.__call__, "max_sequence_length"))]
        return Text(self.name, self.pipe, readers, pooled=Reader("tokenizer", self.pipe.tokenizer_max_length))

    @property
    def cells(self) -> int:
        return self.pipe.default_sample_size

    @property
    def reads(self) -> int:
        return self.network.config.in_channels // self.patch**2

    @property
    def patch(self) -> int:
        return 2  # packed

    @of_parts("network")
    def sites(self) -> tuple[Site, ...]:
        both, config = ("text", "image"), self.network.config
        heads, dim, rotary = config.num_attention_heads, config.attention_head_dim, tuple(config.axes_dims_rope)
        double = [f"transformer_blocks.{i}.attn" for i in range(len(self.network.transformer_blocks))]
        one = [f"single_transformer_blocks.{i}.attn" for i in range(len(self.network.single_transformer_blocks))]
        return tuple(
            Site(path, i, "double" if i < len(double) else "single", both, both, 2, heads, dim, rotary=rotary)
            for i, path in enumerate(double + one)
        )

    @of_parts("network")
    def distilled(self) -> float:
        """Dev reads its guidance as an input, unless told this one; schnell has none."""
        return 3.5 if self.network.config.guidance_embeds else 1.0

    def levels(self, steps: int, grid: Sequence[int]) -> Levels:
        """Its pipeline gives the scheduler sigmas to shift, 1 to 1 / steps."""
        return self.schedule.levels(steps, grid[0] * grid[1] // 4, torch.linspace(1, 1 / steps, steps).tolist())

    def _encode(self, prompts: list[str], skip: int | None) -> dict[str, Tensor]:
        text, pooled, _ = self.pipe.encode_prompt(
            prompts, None, device=self.device, max_sequence_length=self.text_tokens
        )
        return {"text": text, "pooled": pooled}

    def inputs(self, network: Any, x: Tensor, time: Tensor, cond: Cond) -> dict[str, Any]:
        """What its network, or a ControlNet of it, reads, in its own precision."""
        dtype, (b, _, h, w) = dtype_of(network), x.shape
        guidance = None
        if network.config.guidance_embeds:
            guidance = cond.extra.get("guidance", torch.full((b,), self.distilled, device=x.device))
            if dtype == torch.float16:  # the network reads a thousand times of it
                finite(guidance.to(dtype) * 1000, f"the guidance of {self.name} in float16", "it reads up to 65 there")
        return {
            "hidden_states": packed(x).to(dtype),
            "timestep": time / 1000,
            "guidance": guidance,
            "pooled_projections": cond.extra["pooled"].to(dtype),
            "encoder_hidden_states": cond.text.to(dtype),
            "txt_ids": torch.zeros(cond.text.shape[1], 3, device=x.device),
            "img_ids": positions(h // 2, w // 2).to(x.device),
        }

    def _predict(self, x: Tensor, inside: Tensor, time: Tensor, cond: Cond) -> Tensor:
        more = self.controlled(x, time, cond)
        predicted = self.network(**self.inputs(self.network, inside, time, cond), **more, return_dict=False)[0]
        return unpacked(predicted, *x.shape[-2:])


def packed(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
    """Two by two cells as one token of four times the channels."""
    b, c, h, w = x.shape
    cells = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(b, h * w // 4, 4 * c)


def unpacked(tokens: Float[Tensor, "b n d"], h: int, w: int) -> Float[Tensor, "b c h w"]:
    """The inverse of ``packed``."""
    b, _, d = tokens.shape
    cells = tokens.view(b, h // 2, w // 2, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(b, d // 4, h, w)


def positions(rows: int, columns: int) -> Float[Tensor, "n 3"]:
    """Row and column of each token, as Flux's rotary embedding reads them."""
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(grid[0]), *grid], -1).reshape(-1, 3).float()
