"""The run in which weights of a model's networks learn: in copies of these, so that the model stays as it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.backbone import dtype_of
from sfumato.core.conditions import Cond
from sfumato.core.settings import Count, Weight, Whole
from sfumato.errors import SfumatoError
from sfumato.learning import adapters
from sfumato.learning.adapters import Weights
from sfumato.learning.personal import Asked, Personalisation
from sfumato.learning.teaching import Part, Taught, Teaching, filled, min_snr

SKS = "sks"
"""A rare token of CLIP's vocabulary."""
CONSONANTS = "bcdfghjklmnpqrstvwxz"
HALVES = (torch.float16, torch.bfloat16)
Moved = Mapping[str, Mapping[str, nn.Parameter]]
"""What learns, by the pipeline's part and the weight's name in it."""


@dataclass(frozen=True)
class Retuning(Personalisation):
    """A way to teach weights: the settings that they share."""

    batch: Count = 1
    """Pictures of a step, and as many of the kind."""
    prior_weight: Weight = 1.0
    """What pictures of the kind count; 0 for the thing's alone."""
    class_pictures: Whole = 100
    """How many are painted of the kind, where they count."""
    identifier: str | None = None
    """Rare words that stand before the kind; none: sks, and for ``sfumato learn`` some that its word has alone."""
    templates: tuple[str, ...] = ("a {}",)
    """Captions, with {} for the word or the kind."""
    snr_gamma: Weight | None = None
    """Min-SNR: how much an error counts at most (5 in Hang et al. 2023); none: all levels the same."""
    clip: Weight | None = 1.0
    """The greatest norm of all gradients."""

    @property
    def rare(self) -> str:
        """What stands before the kind."""
        return SKS if self.identifier is None else self.identifier

    @property
    def wants_prior(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.prior_weight > 0

    def check(self, asked: Asked) -> None:
        super().check(asked)
        check(asked.model, type(self).__name__, getattr(self, "text", False))


@dataclass(eq=False)
class Tuning(Teaching):
    """Weights of the model's own copies of networks learn to see the pictures, and vectors of the word may."""

    moved: Moved = field(default_factory=dict)
    word: str = ""
    rows: Mapping[str, nn.Parameter] = field(default_factory=dict)
    """Vectors of the word that learn, by encoder."""
    behind: Mapping[str, Float[Tensor, "k d"]] = field(default_factory=dict)
    """Those that follow them and do not."""
    phrase: str = ""
    """What the word reads as, where vocabularies learn."""
    snr_gamma: float | None = None
    """Errors in the data count min(SNR, this); None: those in the prediction are all the same."""

    def __post_init__(self) -> None:
        self.modules = {part: Weights(named) for part, named in self.moved.items() if named}
        if self.rows:
            self.modules["rows"] = nn.ParameterDict(dict(self.rows))

    def cond(self, taught: Sequence[Taught]) -> Cond:
        """Texts of encoders and words that do not learn are made once."""
        encoders = any(part.startswith("text_encoder") for part in self.moved)
        words = self.words(attached=True)
        conds = []
        for each in taught:
            learns = encoders or any(word in caption for word in words for caption in each.captions)
            conds.append(self.model.read(each.captions, words) if learns else self.model.embed(each.captions))
        return Cond.cat(conds)

    def vectors(self, attached: bool = False) -> dict[str, Float[Tensor, "k d"]]:
        """What the word reads as, where that learns."""
        if self.phrase:
            return self.model.vectors(self.phrase, attached)
        rows = self.rows if attached else {key: each.detach() for key, each in self.rows.items()}
        return {key: torch.cat([each, self.behind[key].to(each)]) for key, each in rows.items()}

    def words(self, attached: bool = False) -> dict[str, dict[str, Float[Tensor, "k d"]]]:
        """Words that learn, and what they read as."""
        own = self.vectors(attached)
        return {self.word: own} if own else {}

    def weights(self, taught: Taught) -> Float[Tensor, " b"] | None:
        return None if self.snr_gamma is None else min_snr(self.model.schedule, taught.at, self.snr_gamma)


def check(model: Any, who: str, text: bool = False) -> None:
    """Raise ``SfumatoError`` for a model whose weights cannot learn."""
    if not hasattr(model, "with_parts"):
        raise SfumatoError(f"{who} changes weights, and {model.name} has none that could learn; take a diffusers model")
    adapters.check(model)
    if text and not getattr(model, "learns", False):
        raise SfumatoError(
            f"{who} teaches text encoders of Stable Diffusion 1, 2, XL and the built-in model, not those of "
            f"{model.name}; leave text out"
        )


def parts_of(model: Any, text: bool = False) -> list[str]:
    """The names of the network in a pipeline, and, where they learn, of the text encoders."""
    names = ["unet", "transformer", *(["text_encoder", "text_encoder_2"] if text else [])]
    return [name for name in names if getattr(model.pipe, name, None) is not None]


def named(asked: Asked, identifier: str) -> tuple[Any, dict[str, Float[Tensor, "k d"]]]:
    """A model that reads the word as the vectors of ``identifier`` and the kind, and these vectors.

    One that learns no words reads the word as it is spelled, and has no vectors.
    """
    model = asked.model
    if not getattr(model, "learns", False):
        return model, {}
    rows = model.vectors(f"{identifier} {asked.kind}")
    return model.with_words({asked.word: rows}), rows


def rare(model: Any, word: str) -> str:
    """What stands before the kind for this word alone, so that concepts of one kind read differently.

    One of the last words of three consonants in the vocabulary, which is in the order of how common they are
    (DreamBooth, section 3.2, draws a rare token of three characters or fewer); any three where it has none.
    """
    drawn = int(sha256(word.encode()).hexdigest(), 16)
    tokens = sorted((vocabulary := model.pipe.tokenizer.get_vocab()), key=vocabulary.__getitem__)
    last = tokens[3 * len(tokens) // 4 :]
    if found := [token[:3] for token in last if re.fullmatch(f"[{CONSONANTS}]{{3}}</w>", token)]:
        return found[drawn % len(found)]
    return "".join(CONSONANTS[drawn // len(CONSONANTS) ** i % len(CONSONANTS)] for i in range(3))


def captions(asked: Asked, templates: Sequence[str], word: str) -> tuple[str, ...]:
    """Captions with the word; of a model without words the empty one."""
    return filled(templates, word) if asked.model.text_tokens else ("",)


def lessons(asked: Asked, templates: Sequence[str], batch: int, prior_weight: float) -> list[Part]:
    """The pictures under the word, and, where they count, as many of the kind under its name (prior preservation)."""
    parts = [Part(asked.lesson, captions(asked, templates, asked.word), batch)]
    if prior_weight and asked.prior is not None:
        parts.append(Part(asked.prior, captions(asked, templates, asked.kind), batch, prior_weight))
    return parts


def copies(
    model: Any, parts: Sequence[str], learns: Callable[[str], bool] = lambda name: True
) -> tuple[Any, dict[str, dict[str, nn.Parameter]]]:
    """A model with float32 copies of these weights of its parts, and they.

    Parts in halves compute in theirs, or in bfloat16 where nothing of them is left. Raises ``SfumatoError`` for a model
    that carries adapters.
    """
    networks, moved = {}, {}
    for part in parts:
        network = getattr(model.pipe, part)
        if any(hasattr(module, "merged_adapters") for module in network.modules()):
            raise SfumatoError(f"{model.name} carries LoRAs, and its weights below them would learn; load it without")
        own, moved[part] = adapters.copied(network, learns)
        if dtype_of(network) in HALVES:  # the network itself casts, as models are asked outside of modes
            cast = left if (left := dtype_of(own)) in HALVES else torch.bfloat16
            own.forward = torch.autocast(model.device.type, cast)(own.forward)
        networks[part] = own
    return model.with_parts(networks), moved


def low_rank(
    model: Any, parts: Sequence[str], rank: int, seed: int, alpha: float | None = None
) -> tuple[Any, dict[str, dict[str, nn.Parameter]]]:
    """A model with low-rank changes of the attention of these parts, none at first, and their halves."""
    rng, networks, moved = torch.Generator().manual_seed(seed), {}, {}
    for part in parts:
        layers = adapters.CLIP if part.startswith("text_encoder") else adapters.JOINT
        networks[part], pairs = adapters.low_rank(getattr(model.pipe, part), layers, rank, rng, model.name, alpha)
        moved[part] = {f"{path}.{adapters.LOW}": pair.down for path, pair in pairs.items()}
        moved[part] |= {f"{path}.{adapters.HIGH}": pair.up for path, pair in pairs.items()}
    return model.with_parts(networks), moved


def halves(moved: Moved, scale: float = 1.0) -> dict[str, Tensor]:
    """Low-rank changes as they are kept, of which one half carries the scale."""
    return {
        f"{part}.{name}": value.detach() * (scale if name.endswith(adapters.HIGH) else 1.0)
        for part, named in moved.items()
        for name, value in named.items()
    }


def differences(model: Any, moved: Moved) -> dict[str, Tensor]:
    """What learning added to the weights of a model, of those that moved."""
    found = {}
    for part, own in moved.items():
        network = getattr(model.pipe, part)
        before = dict(getattr(network, "_orig_mod", network).named_parameters())
        for name, weight in own.items():
            change = weight.detach() - before[name].detach().float()
            if bool(change.any()):
                found[f"{part}.{name}"] = change
    return found
