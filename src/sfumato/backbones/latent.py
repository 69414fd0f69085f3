"""What families with an autoencoder share: parts of a diffusers pipeline, images to latents and back, texts once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import ref

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones import autoencoders, kinds, own_words
from sfumato.backbones.changes import OfPipe
from sfumato.backbones.own_words import OwnWords, Rows, Word
from sfumato.backbones.parts import of_parts
from sfumato.backbones.text import READING, Text, quietly
from sfumato.core.backbone import Backbone, times
from sfumato.core.conditions import Cond, Texts
from sfumato.core.modes import unmoded
from sfumato.core.schedule import Schedule
from sfumato.core.taps import read_apart, weighed
from sfumato.errors import SfumatoError
from sfumato.io.terminal import note
from sfumato.prompts.words import WordsRead

if TYPE_CHECKING:
    from typing_extensions import Self

_MANY = 1000  # texts that are remembered


class Latent(OfPipe, Backbone):
    """What it knows of its networks is read from ``pipe``: another part that is put in there is used, or refused."""

    kind: ClassVar[str]
    """Of network (``sfumato.backbones.kinds``)."""
    steered: ClassVar[tuple[str, ...]] = ()
    """Classes of the ControlNets that it takes."""
    vae_reads: ClassVar[tuple[str, ...]] = ()
    """What its pipeline reads of the VAE's config beside the scale (``autoencoders.SHIFTS``)."""

    usual_cells = 64
    """Side of the latents where the network does not say what it was trained on; diffusers' own."""
    text: Text
    """What its tokenizers make of prompts."""
    skips = learns = False
    """Can layers of its CLIPs be skipped, and can these learn words?"""
    clip_skip: int | None = None
    """How many of the last layers of its CLIPs are not run for prompts, as diffusers counts them. As there, negative
    prompts, and the empty one in their place, are read by all of them."""

    own: OwnWords | None = None
    """Words that it knows beside its vocabulary (``with_words``)."""

    _known: dict[tuple[str, int | None], dict[str, Tensor]]
    _of: tuple[list[ref[Any]], object] = ([], None)

    def __init__(self, name: str, pipe: Any):
        self.name, self.pipe = name, pipe
        _ = self.schedule, self.size  # what is not known is refused here

    @of_parts("pipe.scheduler", "pipe.scheduler.config")
    def schedule(self) -> Schedule:
        return Schedule.read(self.pipe.scheduler)

    @of_parts("pipe.unet", "pipe.vae")
    def network(self) -> Any:
        kinds.check(self)
        return self.pipe.unet

    @of_parts("pipe.vae", "network")
    def vae(self) -> Any:
        """The autoencoder."""
        kinds.check(self)
        return self.pipe.vae

    @property
    def tokenizer(self) -> Any:
        """That by which words are found among the text's tokens."""
        return self.text.tokenizer

    @property
    def channels(self) -> int:
        return self.vae.config.latent_channels

    @property
    def reads(self) -> int:
        """Channels that the network reads: of the latents, and of an image as condition."""
        return self.network.config.in_channels

    @property
    def factor(self) -> int:
        return autoencoders.factor(self.vae, self.name, self.vae_reads)

    @property
    def multiple(self) -> int:
        return self.factor

    @property
    def networks(self) -> tuple[Any, ...]:
        return tuple(part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module))

    @property
    def cells(self) -> int:
        """Side of the latents that it was trained on, the shorter where they are no square."""
        return kinds.side(self.name, self.network.config.sample_size or self.usual_cells)

    @of_parts("network", "vae")
    def size(self) -> int:
        return self.cells * self.factor

    @property
    def text_tokens(self) -> int:
        return self.text.tokens

    def embed(self, prompts: Sequence[str]) -> Cond:
        return self._embed(prompts, negative=False)

    def embed_negative(self, prompts: Sequence[str]) -> Cond:
        return self._embed(prompts, negative=True)

    @unmoded()
    @torch.no_grad()
    def _embed(self, prompts: Sequence[str], negative: bool) -> Cond:
        self._forget()
        asked = [(p, None if negative else self.clip_skip) for p in prompts]
        for skip in {skip for _, skip in asked}:
            new = [p for p, skipped in dict.fromkeys(asked) if skipped == skip and (p, skip) not in self._known]
            for prompt in new:
                self.text.check_known(prompt)
                if remark := self.text.remark(prompt):
                    note(remark)
            if not new:
                continue
            parts = self.encoded(new, skip)
            self._known |= {(p, skip): {k: v[i] for k, v in parts.items()} for i, p in enumerate(new)}
        rows = {k: torch.stack([self._known[a][k] for a in asked]) for k in self._known[asked[0]]}
        return self._conditions(prompts, rows, negative)

    def encoded(
        self, prompts: Sequence[str], skip: int | None, words: Mapping[str, Rows] | None = None
    ) -> dict[str, Tensor]:
        """``text`` and all else that is read of prompts, a row each, in float32."""
        with READING, quietly(), nullcontext() if self.own is None else self.own.read_as(self.pipe, words):
            parts = self._encode([self.text.plain(p) for p in prompts], skip)
        return {k: v.float() if v.is_floating_point() else v for k, v in parts.items()}

    def _conditions(self, prompts: Sequence[str], rows: Mapping[str, Tensor], negative: bool) -> Cond:
        rest = dict(rows)
        text = rest.pop("text")
        own = self.own
        varied = own is not None and any(own.varied(self, prompt) for prompt in prompts)
        layered = self._read_apart if varied else None
        cond = Cond(text, tuple(prompts), rest, weights=self.text.weights(prompts, text), layered=layered)
        return self._completed(cond, negative)

    def _completed(self, cond: Cond, negative: bool) -> Cond:
        """With what a family reads beside."""
        return cond

    def with_words(self, words: Mapping[str, Tensor | Rows | Word]) -> Self:
        """This model, which reads words of one's own as vectors: the same networks, other tokenizers.

        A word is a tensor (k, d), of SDXL one by each of ``clip_l`` and ``clip_g``, or a ``Word``, whose vectors differ
        by layer and time. Raises ``SfumatoError`` for a model that learns no words, for vectors of other widths, and
        for a word that it knows.
        """
        if not self.learns or "embed" in vars(self):
            what = "is given conditions already; teach it words first"
            what = what if self.learns else "learns no words; take Stable Diffusion 1, 2 or XL"
            raise SfumatoError(f"{self.name} {what}")
        other = self.another()
        other.pipe, other.own = own_words.taught(self.pipe, self.name, words, self.own)
        return other

    def vectors(self, words: str, attached: bool = False) -> dict[str, Float[Tensor, "k d"]]:
        """What encoders begin to read words as: the rows of their tokens, by encoder, in float32.

        ``attached``: with gradients, where encoders learn.
        """
        found = own_words.rows_in(self.pipe, self.name, words)
        return found if attached else {key: rows.detach() for key, rows in found.items()}

    def spread(self) -> dict[str, float]:
        """Standard deviation of what encoders begin to read tokens as, of their whole vocabularies."""
        return own_words.spread(self.pipe)

    @unmoded()
    def read(self, prompts: Sequence[str], words: Mapping[str, Rows | Word]) -> Cond:
        """What it reads of prompts with these vectors in the place of words that it knows (``with_words``).

        Vectors are (k, d) by encoder, or (b, k, d) of a row a prompt; or a ``Word``, whose vectors differ by layer and
        time. Gradients flow to them; nothing is remembered.
        """
        rows = {word: own_words.rows_of(own) for word, own in words.items()}
        apart = any(vectors.ndim == 3 for of in rows.values() for vectors in of.values())
        each = list(prompts) if apart else list(dict.fromkeys(prompts))  # the same prompt is read once
        parts = self.encoded(each, self.clip_skip, rows)
        if not apart:
            at = torch.tensor([each.index(prompt) for prompt in prompts], device=self.device)
            parts = {key: values[at] for key, values in parts.items()}
        cond = self._conditions(prompts, parts, negative=False)
        varied = {word: own for word, own in words.items() if not isinstance(own, Mapping)}
        if not varied:
            return cond

        def layered(cond: Cond, t: Float[Tensor, " b"]) -> Texts:
            return own_words.learned(self, cond, t, self.text_layers, varied, self.clip_skip)

        return replace(cond, layered=layered)

    @property
    def text_layers(self) -> int:
        """How many layers of the network read the text."""
        return sum(layer.kind == "text" for layer in self.layers)

    @property
    def last_norm(self) -> Any:
        """The norm of an encoder that gives the text, where the text is what one gives."""
        return None

    def _read_apart(self, cond: Cond, t: Float[Tensor, " b"]) -> Texts:
        assert self.own is not None
        return self.own.texts(self, cond, t, self.text_layers)

    def _forget(self) -> None:
        """Nothing that is remembered holds once an encoder, a tokenizer or anything in one of them is another."""
        names = [f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")]
        parts = [part for name in names if (part := getattr(self.pipe, name, None)) is not None]
        modules: list[Any] = [m for part in parts if isinstance(part, torch.nn.Module) for m in part.modules()]
        weights = [p for m in modules for p in m.parameters(recurse=False) if not p.is_meta]  # none offloaded
        changes = [
            (*m.scaling.items(), *m.active_adapters, *m.merged_adapters, m.disable_adapters)
            for m in modules
            if hasattr(m, "merged_adapters")
        ]
        sizes = [len(part) for part in parts if not isinstance(part, torch.nn.Module)]
        now, state = [*parts, *weights], ([p._version for p in weights], changes, sizes)
        before, then = self._of
        same = len(before) == len(now) and all(old() is one for old, one in zip(before, now, strict=True))
        if not same or then != state or len(self._known) > _MANY:
            self._known, self._of = {}, ([ref(one) for one in now], state)
            self.own = self.own and self.own.afresh()

    @abstractmethod
    def _encode(self, prompts: list[str], skip: int | None) -> dict[str, Tensor]:
        """``text`` and whatever else the family reads of prompts without weights, a row each.

        ``skip``: layers of the CLIPs that are left out, where the family can.
        """

    @unmoded()
    def predict(self, x: Float[Tensor, "b c h w"], t: float | Float[Tensor, "*b"], cond: Cond) -> Tensor:
        return self.with_variance(x, t, cond)[:, : self.channels]

    def with_variance(self, x: Float[Tensor, "b c h w"], t: float | Float[Tensor, "*b"], cond: Cond) -> Tensor:
        inside, time = self.inside(x, cond), times(t, x)
        texts = None if cond.layered is None else cond.layered(cond, time)
        layers = () if texts is None else self.layers
        with weighed(self.network, self.sites, cond.weights), read_apart(self.network, layers, texts):
            return self._predict(x, inside, time, cond).float()

    @abstractmethod
    def _predict(self, x: Tensor, inside: Float[Tensor, "b d h w"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """What the network gives for ``inside``, the latents ``x`` with the image of their conditions."""

    def controlled(self, x: Tensor, time: Float[Tensor, " b"], cond: Cond) -> dict[str, Any]:
        """What the controls of conditions add to the network's inputs, by its own names: residuals add up."""
        more: dict[str, Any] = {}
        for control in cond.controls:
            for key, value in control(self, x, time, cond).items():
                own = _of_type(value, self.dtype)
                more[key] = _sum(more[key], own) if key in more else own
        return more

    def inside(self, x: Float[Tensor, "b c h w"], cond: Cond) -> Float[Tensor, "b d h w"]:
        """``x`` with the image of its conditions behind it.

        Raises ``SfumatoError`` unless there is a row of conditions for each image, of what the network takes.
        """
        if len(cond) != len(x):
            raise SfumatoError(f"{len(x)} images need {len(x)} rows of conditions, got {len(cond)}")
        if cond.controls and not self.steered:
            raise kinds.unsteered(self.name)
        both = x if cond.image is None else torch.cat([x, cond.image.to(x)], 1)
        maps = self.network.config.get(kinds.MAPS, 0)
        if maps and both.shape[1] == self.reads - maps:  # no region says anything
            both = F.pad(both, (0, 0, 0, 0, 0, maps))
        if both.shape[1] != self.reads:
            raise SfumatoError(
                f"{self.name} reads {self.reads} channels, got {both.shape[1]}; "
                + (self.beside if cond.image is None else "it takes no image as condition")
            )
        return both

    @property
    def beside(self) -> str:
        """How a network is given what it reads beside latents and text."""
        return "it needs an image as condition"

    @unmoded()
    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        return autoencoders.encode(self.vae, images.to(self.device))

    @unmoded()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        return autoencoders.decode(self.vae, latents)

    def words(self, prompt: str) -> WordsRead:
        return self.text.words(prompt)

    def check_change(self, source: str, target: str) -> None:
        self.text.check_change(source, target)


def _of_type(value: Any, dtype: torch.dtype) -> Any:
    """Residuals of a control, which may compute in another precision than what it steers."""
    if isinstance(value, tuple | list):
        return [_of_type(each, dtype) for each in value]
    return value.to(dtype) if isinstance(value, Tensor) else value


def _sum(a: Any, b: Any) -> Any:
    """Residuals of several controls."""
    if isinstance(a, tuple | list) and len(a) == len(b):
        return [_sum(x, y) for x, y in zip(a, b, strict=True)]
    if isinstance(a, Tensor):
        return a + b
    if a is not b:
        raise SfumatoError("these ControlNets steer different layers, so they do not add up; take one of them")
    return a
