"""Words of a copy of a model: text encoders read them as vectors that are given, and nothing of the model changes.

Their tokens are known to copies of the tokenizers alone. An encoder is run with another token in their place, whose
embedding is exchanged for the vector: so vectors may have gradients, and the vocabulary neither grows nor learns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones.embeddings import ENCODERS, check
from sfumato.backbones.text import token_of
from sfumato.core.conditions import Cond, Texts
from sfumato.core.taps import here
from sfumato.errors import SfumatoError

MANY = 64
"""Texts by layer that are remembered: of the prompts of a run at its present times."""
Rows = Mapping[str, Float[Tensor, "*b k d"]]
"""Vectors of a word by the encoder's key (``clip_l``, ``clip_g``): of all prompts alike, or a row a prompt."""


class Word(Protocol):
    """What a word is read as by each layer at each time."""

    plain: Rows
    """What it is where layers and times do not matter."""
    timed: bool
    """Does it change with time?"""

    def at(self, t: Float[Tensor, " b"], layers: int) -> tuple[Rows, Float[Tensor, "b layers k D"] | None]:
        """Vectors (b, layers, k, d) at these times; and what values are told beside keys, or None: it is added to the
        encoding of the word's tokens, in parts of its length."""
        ...


@dataclass(eq=False)
class OwnWords:
    """Words that a model knows beside its vocabulary."""

    words: Mapping[str, Rows | Word]
    ids: Mapping[str, Mapping[int, tuple[str, int]]]
    """Encoder's key -> token -> (word, which of its vectors)."""
    _known: OrderedDict[Any, Texts] = field(default_factory=OrderedDict)

    def tokens(self, part: str) -> frozenset[int]:
        """Those that a tokenizer of the pipeline has for them."""
        return frozenset(i for key, ids in self.ids.items() if part in ENCODERS[key] for i in ids)

    @contextmanager
    def read_as(self, pipe: Any, rows: Mapping[str, Rows] | None = None) -> Iterator[None]:
        """While the block runs, encoders read each word as its vectors, or as those that are given instead."""
        all_of = {word: rows_of(own) for word, own in self.words.items()} | dict(rows or {})
        hooks: list[Any] = []
        try:
            for key, ids in self.ids.items():
                vectors = {i: all_of[word][key][..., n, :] for i, (word, n) in ids.items()}
                hooks += _read_by(getattr(pipe, ENCODERS[key][0]), vectors)
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def varied(self, model: Any, prompt: str) -> dict[str, Word]:
        """The words of a prompt whose vectors depend on where and when they are read."""
        plain = model.text.plain(prompt)
        return {
            word: own for word, own in self.words.items() if not isinstance(own, Mapping) and token_of(word, 0) in plain
        }

    @torch.no_grad()
    def texts(self, model: Any, cond: Cond, t: Float[Tensor, " b"], layers: int) -> Texts:
        """What each layer reads of these rows at these times. Those of a time and prompt are made once.

        Raises ``SfumatoError`` for a row whose text is no longer what the model makes of its prompt.
        """
        plain = cond.text[:, None].expand(-1, layers, -1, -1)
        keys, values = plain.clone(), plain.clone()
        for i, (prompt, time) in enumerate(zip(cond.prompts, t, strict=True)):
            if not (words := self.varied(model, prompt)):
                continue
            skip = None
            if not torch.equal(model.embed_negative([prompt]).text[0], cond.text[i]):
                skip = model.clip_skip
                if not torch.equal(model.embed([prompt]).text[0], cond.text[i]):
                    raise SfumatoError(
                        f"{next(iter(words))!r} is read otherwise by each layer, and something has changed the text of "
                        f"{prompt!r}; leave one of the two out"
                    )
            when = float(time) if any(own.timed for own in words.values()) else None
            if (key := (prompt, when, skip)) not in self._known:
                vectors = {word: own.at(time[None], layers) for word, own in words.items()}
                self._known[key] = apart(model, [prompt], vectors, skip)
            self._known.move_to_end(key)
            while len(self._known) > MANY:
                self._known.popitem(last=False)
            found = self._known[key]
            keys[i] = found.keys[0]
            values[i] = (found.keys if found.values is None else found.values)[0]
        return Texts(keys, values)


def apart(
    model: Any, prompts: Sequence[str], words: Mapping[str, tuple[Rows, Tensor | None]], skip: int | None
) -> Texts:
    """What each layer reads of prompts with vectors (b, layers, k, d) in the place of words; gradients flow to them."""
    layers = next(iter(next(iter(words.values()))[0].values())).shape[1]
    vectors = {word: {key: rows.flatten(0, 1) for key, rows in of.items()} for word, (of, _) in words.items()}
    many = [prompt for prompt in prompts for _ in range(layers)]
    keys = model.encoded(many, skip, vectors)["text"].unflatten(0, (len(prompts), layers))
    values = None
    for word, (_, beside) in words.items():
        if beside is None:
            continue
        values = keys.clone() if values is None else values
        reader = model.text.readers[0]
        own = [i for i, (w, _) in next(iter(model.own.ids.values())).items() if w == word]
        for row, prompt in enumerate(prompts):
            ids = model.text.ids(prompt)[: reader.tokens]
            for n, token in enumerate(own):
                for place in (reader.at + at for at, i in enumerate(ids) if i == token):
                    length = keys[row, :, place].norm(dim=-1, keepdim=True)
                    values[row, :, place] = keys[row, :, place] + length * beside[row, :, n]
    return Texts(keys, values)


def rows_of(own: Rows | Word) -> Rows:
    return own if isinstance(own, Mapping) else own.plain


def taught(pipe: Any, name: str, words: Mapping[str, Any], before: OwnWords | None) -> tuple[Any, OwnWords]:
    """A pipeline with the same networks whose tokenizers know these words as well.

    A word is a tensor (k, d), those of each encoder by its key, or a ``Word``. Raises ``SfumatoError`` for vectors of
    another width, and for a word that is known already.
    """
    encoders = {key: parts for key, parts in ENCODERS.items() if getattr(pipe, parts[0], None) is not None}
    widths = {key: getattr(pipe, parts[0]).get_input_embeddings().weight.shape[-1] for key, parts in encoders.items()}
    other = copy(pipe)
    tokenizers = {key: deepcopy(getattr(pipe, parts[1])) for key, parts in encoders.items()}
    known: dict[str, Rows | Word] = dict(before.words) if before else {}
    ids = {key: dict(before.ids[key]) if before else {} for key in encoders}
    for word, given in words.items():
        own: Any = {next(iter(encoders)): given} if isinstance(given, Tensor) else given
        rows = rows_of(own)
        check(word, rows, widths, name)
        count = len(rows[next(iter(encoders))])
        tokens = [token_of(word, i) for i in range(count)]
        for key, tokenizer in tokenizers.items():
            if tokens[0] in tokenizer.added_tokens_encoder:
                raise SfumatoError(f"{name} knows a word {word!r} already; call the other otherwise, such as FILE:WORD")
            tokenizer.add_tokens(tokens)
            ids[key] |= {tokenizer.convert_tokens_to_ids(token): (word, i) for i, token in enumerate(tokens)}
        known[word] = own
    for key, tokenizer in tokenizers.items():
        setattr(other, encoders[key][1], tokenizer)
    return other, OwnWords(known, ids)


def _read_by(encoder: Any, vectors: Mapping[int, Float[Tensor, "*b d"]]) -> Sequence[Any]:
    """Hooks by which an encoder reads tokens as vectors, of which it has no embeddings."""
    seen: list[Tensor] = []

    def before(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        ids = args[0] if args else named["input_ids"]
        own = torch.isin(ids, torch.tensor([*vectors], device=ids.device))
        seen[:] = [ids]
        plain = ids.masked_fill(own, 0)  # the end of a text may be found as its largest token
        return ((plain, *args[1:]), named) if args else (args, {**named, "input_ids": plain})

    def embedded(module: Any, args: Any, out: Tensor) -> Tensor:
        (ids,) = seen
        for token, vector in vectors.items():
            value = vector.to(out) if vector.ndim == 1 else vector.to(out)[:, None]
            out = torch.where((ids == token)[..., None], value, out)
        return out

    return (
        encoder.register_forward_pre_hook(here(before), with_kwargs=True),
        encoder.get_input_embeddings().register_forward_hook(here(embedded)),
    )


def rows_in(pipe: Any, name: str, words: str) -> dict[str, Float[Tensor, "k d"]]:
    """Embeddings of the tokens of words, by encoder, with gradients where it learns.

    Raises ``SfumatoError`` for words without any.
    """
    found = {}
    for key, (part, tokenizer) in ENCODERS.items():
        if (encoder := getattr(pipe, part, None)) is None:
            continue
        ids = getattr(pipe, tokenizer)(words, add_special_tokens=False).input_ids
        if not ids:
            raise SfumatoError(f"{name} reads nothing in {words!r}; begin with a word that it knows, such as duck")
        found[key] = encoder.get_input_embeddings().weight[torch.tensor(ids)].float()
    return found
