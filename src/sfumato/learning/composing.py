"""Several concepts in one image, each where its word is, so that their changes of weights do not meet.

What each concept's own network predicts counts in its region, and elsewhere what the plain one does (concept noise
blending of OMG, Kong et al. 2024, arXiv 2403.10983):

    e = (1 - sum_i M_i) e_0 + sum_i M_i e_i

There regions are segmented in an image that was painted before. Here they are given, or are found anew in each
prediction: where a concept's words are attended to in its own network, over their maximum, by a part of it at least,
and more than the other concepts'. A prompt without a concept's words is read by the plain network alone.

Or in one pass, where concepts change nothing but how the text is read: at the tokens of its words alone (the token mask
of TARA, Peng et al. 2025, arXiv 2508.08812). Its loss, which holds a rare token to the thing's place, is not built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.choice import nearest
from sfumato.core.conditions import Cond
from sfumato.core.modes import unmoded
from sfumato.core.rows import single
from sfumato.core.taps import here
from sfumato.errors import SfumatoError, unknown
from sfumato.learning.concepts import Concept
from sfumato.learning.merging import read_otherwise

SIDE = 0.25
"""Where attention is read, as a part of the latents' side."""


def apart(
    model: Any,
    concepts: Sequence[Concept],
    regions: Mapping[str, Float[Tensor, "H W"]] | None = None,
    threshold: float = 0.5,
) -> Any:
    """A model that knows all of these, of which each changes the picture in its region alone.

    ``regions``: masks in [0, 1] of any size by a word of the concept, of several words together; of others they are
    found (``threshold``: part of the maximum). Where fewer than two change weights it is the model that knows one after
    the other. Each that changes weights costs a pass of its own for the rows that say its words, and a copy of the
    networks. Raises ``SfumatoError`` for regions of unknown words and of concepts that change no weights, or that are
    no masks.
    """
    regions = dict(regions or {})
    words = [word for concept in concepts for word in concept.words]
    for word, region in regions.items():
        if word not in words:
            raise unknown("word of a region", word, words)
        if not any(word in concept.words for concept in concepts if concept.changes):
            raise SfumatoError(f"{word!r} changes no weights, which a region could keep apart; leave its region out")
        if region.ndim != 2 or not (region.isfinite().all() and region.min() >= 0 and region.max() <= 1):
            raise SfumatoError(f"the region of {word!r} is a mask (h, w) in [0, 1], got {tuple(region.shape)}")
    if not 0 <= threshold <= 1:
        raise SfumatoError(f"a threshold is a part of the maximum, from 0 to 1, got {threshold:g}")
    knows = model
    for concept in concepts:
        knows = replace(concept, changes={}).on(knows)
    changing = [concept for concept in concepts if concept.changes]
    if len(changing) < 2 and not regions:
        for concept in changing:
            knows = knows.with_changes(concept.changes)
        return knows
    if not getattr(knows, "learns", False):
        raise SfumatoError(f"concepts are kept apart by where their words are read, and {model.name} learns no words")
    own = [
        _Own(knows.with_changes(c.changes), c.words, tuple(regions[w] for w in c.words if w in regions),
             any(key.startswith("text_encoder") for key in c.changes))
        for c in changing
    ]  # fmt: skip
    return _predicting(knows, _Blended(knows, own, threshold))


def alike(concepts: Sequence[Concept]) -> tuple[str, str] | None:
    """The words of the first two that change weights under vectors that are the same, which no prompt tells apart."""
    for one, other in combinations([c for c in concepts if c.changes and c.rows], 2):
        same = one.rows.keys() == other.rows.keys()
        if same and all(torch.equal(rows, other.rows[key]) for key, rows in one.rows.items()):
            return one.word, other.word
    return None


def at_tokens(model: Any, concepts: Sequence[Concept]) -> Any:
    """A model that knows all of these, of which each changes keys and values at the tokens of its own words alone.

    It costs no pass more. Raises ``SfumatoError`` for concepts that change other weights, for a model that learns no
    words, and for one that was compiled.
    """
    if not getattr(model, "learns", False):
        raise SfumatoError(f"concepts are kept to the tokens of their words, and {model.name} learns no words")
    if hasattr(model.network, "_orig_mod"):
        raise SfumatoError("of a compiled network tokens cannot be told apart; load the model with compile=False")
    knows = model
    for concept in concepts:
        knows = replace(concept, changes={}).on(knows)
    changes = zip(concepts, read_otherwise(concepts, model), strict=True)
    focused = _Focused(knows, [(concept.words, added) for concept, added in changes if added])
    return _predicting(knows, focused)


def _predicting(model: Any, how: Callable[..., Tensor]) -> Any:
    """A copy of the model that predicts like this."""
    other = model.another()
    other.with_variance = how
    other.predict = lambda x, t, cond: how(x, t, cond)[:, : model.channels]
    return other


@dataclass(frozen=True, eq=False)
class _Focused:
    """The prediction of a network that reads some tokens otherwise."""

    plain: Any
    own: Sequence[tuple[tuple[str, ...], Mapping[str, Tensor]]]
    """Words, and what at their tokens is added to weights, by their names."""

    def __call__(self, x: Float[Tensor, "b c h w"], t: float | Float[Tensor, "*b"], cond: Cond) -> Tensor:
        network, hooks = self.plain.network, []
        try:
            for words, added in self.own:
                where = cond.text.new_zeros(cond.text.shape[:2])
                for row, prompt in enumerate(cond.prompts):
                    for word in words:
                        where[row, self.plain.own.places(self.plain, prompt, word)] = 1
                for key, change in added.items() if where.any() else ():
                    layer = network.get_submodule(key.partition(".")[2].removesuffix(".weight"))
                    hooks.append(layer.register_forward_hook(here(partial(_read, where, change))))
            return self.plain.with_variance(x, t, cond)
        finally:
            for hook in hooks:
                hook.remove()


def _read(where: Float[Tensor, "b n"], change: Tensor, module: Any, args: Sequence[Tensor], out: Tensor) -> Tensor:
    """What a layer makes of the text, otherwise at some tokens."""
    (text,) = args
    at = where.repeat_interleave(len(text) // len(where), 0)[..., None]
    return out + (at.to(out) * F.linear(text, change.to(text)))


@dataclass(frozen=True, eq=False)
class _Own:
    """The network of one concept."""

    model: Any
    words: tuple[str, ...]
    regions: tuple[Float[Tensor, "H W"], ...]
    reads: bool
    """Does it read the text otherwise?"""


@dataclass(frozen=True, eq=False)
class _Blended:
    """The prediction of several networks, each in its region."""

    plain: Any
    own: Sequence[_Own]
    threshold: float
    _sites: dict[Any, tuple[Any, ...]] = field(default_factory=dict)

    @unmoded()
    def __call__(self, x: Float[Tensor, "b c h w"], t: float | Float[Tensor, "*b"], cond: Cond) -> Tensor:
        found = self.plain.with_variance(x, t, cond)
        each = [self._of(own, x, t, cond) for own in self.own]
        if not (there := [one for one in each if one is not None]):
            return found
        where = regions(torch.stack([seen for _, seen in there]), self.threshold)
        return found + sum(mask[:, None] * (own - found) for mask, (own, _) in zip(where, there, strict=True))

    def _of(self, own: _Own, x: Tensor, t: Any, cond: Cond) -> tuple[Tensor, Float[Tensor, "b h w"]] | None:
        """What its network predicts, and how much each cell is its words'; None where no prompt says one."""
        spoken = [[word for word in own.words if word in prompt] for prompt in cond.prompts]
        rows = [i for i, words in enumerate(spoken) if words]
        if not rows:
            return None
        some = slice(rows[0], rows[-1] + 1)
        if cond.controls or cond.frames > 1 or cond.views > 1 or cond.numbers is not None:
            some = slice(0, len(cond))
        grid = (x.shape[-2], x.shape[-1])
        few, times = x[some], torch.as_tensor(t).expand(len(x))[some]
        given = self._reread(own, cond, rows)[some] if own.reads else cond[some]
        seen = x.new_zeros(len(x), *grid)
        maps: list[Float[Tensor, "b cells n"]] = []
        if not own.regions:
            handlers = dict.fromkeys(self._at(own.model, grid), lambda call: maps.append(_mean(call)))
            with own.model.tap(handlers, single(len(few)), grid) as tap:
                predicted = own.model.with_variance(few, times, given)
                tap.check(own.model.network)
            side = next(iter(handlers)).grid(grid)
            mean = torch.stack(maps).mean(0)
            for row in rows:
                found = [own.model.own.places(own.model, cond.prompts[row], word) for word in spoken[row]]
                of = [mean[row - some.start][:, tokens].mean(-1) for tokens in found if tokens]
                if of:
                    most = torch.stack([each / each.amax().clamp_min(1e-12) for each in of]).amax(0)
                    small = most.view(1, 1, *side).to(x)
                    seen[row] = F.interpolate(small, grid, mode="bilinear", align_corners=False)[0, 0]
        else:
            predicted = own.model.with_variance(few, times, given)
            each = [F.adaptive_avg_pool2d(region[None].to(x), grid) for region in own.regions]
            seen[rows] = torch.cat(each).amax(0)
        whole = predicted.new_zeros(len(x), *predicted.shape[1:])
        whole[some] = predicted
        return whole, seen

    def _at(self, model: Any, grid: tuple[int, int]) -> tuple[Any, ...]:
        if grid not in self._sites:
            self._sites[grid] = nearest(model, "image->text", grid, SIDE, "keeping concepts apart")
        return self._sites[grid]

    def _reread(self, own: _Own, cond: Cond, rows: Sequence[int]) -> Cond:
        """The conditions with prompts of these rows as its own encoders read them."""
        text, extra = cond.text.clone(), {key: value.clone() for key, value in cond.extra.items()}
        for row in rows:
            prompt = cond.prompts[row]
            for embed, other in ((self.plain.embed, own.model.embed),
                                 (self.plain.embed_negative, own.model.embed_negative)):  # fmt: skip
                if torch.equal(embed([prompt]).text[0], cond.text[row]):
                    read = other([prompt])
                    text[row] = read.text[0]
                    for key, value in extra.items():
                        value[row] = read.extra[key][0]
                    break
            else:
                raise SfumatoError(
                    f"{own.words[0]!r} has a text encoder of its own, and something has changed the text of "
                    f"{prompt!r}; leave one of the two out"
                )
        return replace(cond, text=text, extra=extra)


def _mean(call: Call) -> Float[Tensor, "b cells n"]:
    return call.mean(call.rows.names[0], "image->text")


def regions(seen: Float[Tensor, "k b h w"], threshold: float) -> Float[Tensor, "k b h w"]:
    """Of how much each cell is k concepts' where each is: above the threshold, and more than the others."""
    most, which = seen.max(0)
    first = torch.arange(len(seen), device=seen.device).view(-1, 1, 1, 1) == which
    return (first & (most > threshold)).to(seen)
