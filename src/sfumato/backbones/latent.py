"""What families with an autoencoder share: parts of a diffusers pipeline, images to latents and back, texts once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones import autoencoders
from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.schedule import Schedule
from sfumato.errors import SfumatoError

_MANY = 1000  # texts that are remembered


class Latent(Backbone):
    """``cells``: side of the latents that it was trained on, where the network does not say."""

    reads: int
    """Channels that the network reads: of the latents, and of an image as condition."""
    steered = False
    """Does it take controls?"""
    vae_reads: ClassVar[tuple[str, ...]] = ()
    """What its pipeline reads of the VAE's config beside the scale (``autoencoders.SHIFTS``)."""

    _known: dict[str, dict[str, Tensor]]
    _of: tuple[object, ...] | None = None

    def __init__(self, name: str, pipe: Any, network: Any, tokenizer: Any, cells: int | None = None):
        self.name, self.pipe, self.network, self.tokenizer = name, pipe, network, tokenizer
        self.vae = pipe.vae
        self.schedule = Schedule.read(pipe.scheduler)
        self.channels, self.reads = self.vae.config.latent_channels, network.config.in_channels
        self.factor = self.multiple = autoencoders.factor(self.vae, name, self.vae_reads)
        self.size = (cells or network.config.sample_size) * self.factor
        self.text_tokens = tokenizer.model_max_length

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Cond:
        if self._of != (now := self._encoders()) or len(self._known) > _MANY:
            self._known, self._of = {}, now
        new = [p for p in dict.fromkeys(prompts) if p not in self._known]
        if new:
            parts = {k: v.float() if v.is_floating_point() else v for k, v in self._encode(new).items()}
            self._known |= {p: {k: v[i] for k, v in parts.items()} for i, p in enumerate(new)}
        rows = {k: torch.stack([self._known[p][k] for p in prompts]) for k in self._known[prompts[0]]}
        return Cond(rows.pop("text"), tuple(prompts), rows)

    def _encoders(self) -> tuple[object, ...]:
        """Another one whenever a text encoder's weights or its low-rank changes do: what is remembered is old then."""
        found = [getattr(self.pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
        modules = [m for encoder in found if encoder is not None for m in encoder.modules()]
        here = [p for m in modules for p in m.parameters(recurse=False) if not p.is_meta]  # none offloaded
        weights = [(id(p), p._version) for p in here]
        changes = [
            (*m.scaling.items(), *m.active_adapters, *m.merged_adapters, m.disable_adapters)
            for m in modules
            if hasattr(m, "merged_adapters")
        ]
        return (*weights, *changes)

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """``text`` and whatever else the family reads of prompts, a row each."""
        raise NotImplementedError

    def inside(self, x: Float[Tensor, "b c h w"], cond: Cond) -> Float[Tensor, "b d h w"]:
        """``x`` with the image of its conditions behind it.

        Raises ``SfumatoError`` unless there is a row of conditions for each image, of what the network takes.
        """
        if len(cond) != len(x):
            raise SfumatoError(f"{len(x)} images need {len(x)} rows of conditions, got {len(cond)}")
        if cond.controls and not self.steered:
            raise SfumatoError(
                f"{self.name} takes no controls; ControlNets steer the UNets of Stable Diffusion 1, 2, XL"
            )
        both = x if cond.image is None else torch.cat([x, cond.image.to(x)], 1)
        if both.shape[1] != self.reads:
            raise SfumatoError(
                f"{self.name} reads {self.reads} channels, got {both.shape[1]}; "
                + ("it needs an image as condition" if cond.image is None else "it takes no image as condition")
            )
        return both

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        return autoencoders.encode(self.vae, images.to(self.device))

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        return autoencoders.decode(self.vae, latents)

    def words(self, prompt: str) -> list[tuple[str, slice]]:
        return words(prompt, self.tokenizer, self.text_tokens, self.name)


def words(prompt: str, tokenizer: Any, tokens: int, name: str) -> list[tuple[str, slice]]:
    """The words of a prompt and their tokens; those past the end of what the network reads are left out."""

    def ids(text: str, special: bool = False) -> list[int]:
        return tokenizer(text, add_special_tokens=special, verbose=False).input_ids

    both, plain = ids(prompt, True), ids(prompt)
    at = both.index(plain[0]) if plain else 0  # behind the start token, where there is one
    out, begin = [], at
    for word in prompt.split():
        n = len(ids(word))
        out.append((word, slice(at, at + n)))
        at += n
    if at - begin != len(plain):
        raise SfumatoError(f"the tokenizer of {name} does not split {prompt!r} at its spaces")
    most = min(tokens, tokenizer.model_max_length) - (len(both) - len(plain) - begin)  # what follows is the end token's
    return [(word, span) for word, span in out if span.stop <= most]
