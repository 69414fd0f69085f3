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
from hashlib import sha256
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones.embeddings import ENCODERS, check
from sfumato.backbones.text import READING, token_of
from sfumato.core.conditions import Cond, Texts
from sfumato.core.taps import here
from sfumato.errors import SfumatoError

MANY = 64
"""Texts by layer that are remembered: of the prompts of a run at its present times."""
Rows = Mapping[str, Float[Tensor, "*b k d"]]
"""Vectors of a word by the encoder's key (``clip_l``, ``clip_g``): of all prompts alike, or a row a prompt."""


class Word(Protocol):
    """What a word is read as by each layer at each time."""

    @property
    def plain(self) -> Rows:
        """What it is where layers and times do not matter."""
        ...

    @property
    def timed(self) -> bool:
        """Does it change with time?"""
        ...

    def at(self, t: Float[Tensor, " b"], layers: int) -> tuple[Rows, Rows | None]:
        """Vectors (b, layers, k, d) at these times, or (b, 1, k, d) where layers read the same; and what values alone
        are made of beside them, or None: of the same shapes, in parts of the length of what the encoder makes of the
        word's tokens, to which it is added."""
        ...


@dataclass(eq=False)
class OwnWords:
    """Words that a model knows beside its vocabulary."""

    words: Mapping[str, Rows | Word]
    ids: Mapping[str, Mapping[int, tuple[str, int]]]
    """Encoder's key -> token -> (word, which of its vectors)."""
    _known: OrderedDict[Any, Texts] = field(default_factory=OrderedDict)

    def afresh(self) -> OwnWords:
        """The same words, of which nothing was read yet."""
        return OwnWords(self.words, self.ids)

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

    def places(self, model: Any, prompt: str, word: str) -> list[int]:
        """Tokens of the text that a prompt's word of one's own became; none where it is cut off, or not there."""
        tokens, reader = next(iter(self.ids.values())), model.text.readers[0]
        read = enumerate(model.text.ids(prompt)[: reader.tokens], reader.at)
        return [at for at, token in read if tokens.get(token, ("", 0))[0] == word]

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
        keys, values = cond.text[:, None].expand(-1, layers, -1, -1).clone(), None
        varied = {prompt: self.varied(model, prompt) for prompt in dict.fromkeys(cond.prompts)}
        each = {prompt: words for prompt, words in varied.items() if words}
        skips: dict[int, int | None] = {}
        for skip in dict.fromkeys((model.clip_skip, None)):
            left = [i for i, prompt in enumerate(cond.prompts) if prompt in each and i not in skips]
            texts = _read(model, [*dict.fromkeys(cond.prompts[i] for i in left)], skip)
            skips |= {i: skip for i in left if torch.equal(texts[cond.prompts[i]], cond.text[i])}
        beside: dict[int, Tensor | None] = {}
        done: dict[tuple[str, int | None, float], Texts] = {}
        for i, (prompt, time) in enumerate(zip(cond.prompts, t, strict=True)):
            if (words := each.get(prompt)) is None:
                continue
            if i not in skips:
                raise SfumatoError(
                    f"{next(iter(words))!r} is read otherwise by each layer, and something has changed the text of "
                    f"{prompt!r}; leave one of the two out"
                )
            at = (prompt, skips[i], float(time))
            if at not in done:
                done[at] = self._made(model, words, prompt, skips[i], time[None], layers)
            keys[i] = done[at].keys[0]
            beside[i] = done[at].values
        for i, own in beside.items():
            if own is not None:
                values = keys.clone() if values is None else values
                values[i] = own[0]
        return Texts(keys, values)

    def _made(
        self, model: Any, words: Mapping[str, Word], prompt: str, skip: int | None, t: Float[Tensor, "1"], layers: int
    ) -> Texts:
        """What each layer reads of one prompt at a time; times at which its words are the same are read once."""
        vectors, read = None, b""
        if any(own.timed for own in words.values()):
            vectors = _alike(words, t, layers)
            read = _digest(vectors)
        if (key := (prompt, skip, read)) not in self._known:
            self._known[key] = apart(model, [prompt], vectors or _alike(words, t, layers), skip)
        self._known.move_to_end(key)
        while len(self._known) > MANY:
            self._known.popitem(last=False)
        return self._known[key]


def _read(model: Any, prompts: Sequence[str], skip: int | None) -> dict[str, Float[Tensor, "n d"]]:
    """What the model makes of prompts, which it remembers."""
    if not prompts:
        return {}
    cond = model.embed_negative(prompts) if skip is None else model.embed(prompts)
    return dict(zip(prompts, cond.text, strict=True))


def _alike(words: Mapping[str, Word], t: Float[Tensor, " b"], layers: int) -> dict[str, tuple[Rows, Rows | None]]:
    """Vectors of words at times, for as many layers each; one where no word tells them apart."""
    found = {word: own.at(t, layers) for word, own in words.items()}
    most = max(rows.shape[1] for of, _ in found.values() for rows in of.values())

    def spread(of: Rows) -> Rows:
        return {key: rows.expand(-1, most, -1, -1) for key, rows in of.items()}

    return {word: (spread(of), None if beside is None else spread(beside)) for word, (of, beside) in found.items()}


def _digest(vectors: Mapping[str, tuple[Rows, Rows | None]]) -> bytes:
    """Which vectors these are."""
    known = sha256()
    for of, beside in vectors.values():
        for values in (*of.values(), *(beside or {}).values()):
            known.update(values.float().cpu().contiguous().numpy().tobytes())
    return known.digest()


def learned(
    model: Any, cond: Cond, t: Float[Tensor, " b"], layers: int, words: Mapping[str, Word], skip: int | None
) -> Texts:
    """What each layer reads of these rows while words are learned: gradients flow to them, and nothing is remembered.

    A word's ``at`` is asked for all rows at once. Rows of one prompt are encoded once where no word changes with time.
    """
    plain = {prompt: model.text.plain(prompt) for prompt in cond.prompts}
    found = [
        model.own.varied(model, prompt) | {w: own for w, own in words.items() if token_of(w, 0) in plain[prompt]}
        for prompt in cond.prompts
    ]
    same = {
        i: i if any(own.timed for own in each.values()) else cond.prompts.index(cond.prompts[i])
        for i, each in enumerate(found)
        if each
    }
    every = cond.text[:, None].expand(-1, layers, -1, -1)
    if not (which := sorted(set(same.values()))):
        return Texts(every)
    words = {word: own for each in found for word, own in each.items()}
    vectors = {
        word: (_some(rows, which), None if beside is None else _some(beside, which))
        for word, (rows, beside) in _alike(words, t, layers).items()
    }
    texts = apart(model, [cond.prompts[i] for i in which], vectors, skip)

    def spread(some: Tensor) -> Tensor:
        own = (some[which.index(same[i])] if i in same else every[i] for i in range(len(every)))
        return torch.stack([each.expand(layers, -1, -1) for each in own])

    return Texts(spread(texts.keys), None if texts.values is None else spread(texts.values))


def _some(rows: Rows, which: Sequence[int]) -> Rows:
    return {key: each[list(which)] for key, each in rows.items()}


def apart(model: Any, prompts: Sequence[str], words: Mapping[str, tuple[Rows, Rows | None]], skip: int | None) -> Texts:
    """What each layer reads of prompts with vectors (b, layers, k, d) in the place of words; gradients flow to them.

    What values are made of beside keys is added to what the encoder's last norm is given, where the text is what that
    gives (Stable Diffusion 1 and 2), as NeTI's authors have it; of others to the text, whose length is kept.
    """
    layers = next(iter(next(iter(words.values()))[0].values())).shape[1]
    vectors = {word: {key: rows.flatten(0, 1) for key, rows in of.items()} for word, (of, _) in words.items()}
    many = [prompt for prompt in prompts for _ in range(layers)]
    with _last_norm(model) as seen:
        keys = model.encoded(many, skip, vectors)["text"].unflatten(0, (len(prompts), layers))
    if all(beside is None for _, beside in words.values()):
        return Texts(keys)
    norm, states = model.last_norm, keys
    if norm is not None:
        states = seen[-1].unflatten(0, (len(prompts), layers)).float()
    values, reader = keys.clone(), model.text.readers[0]
    tokens = next(iter(model.own.ids.values()))
    for row, prompt in enumerate(prompts):
        for at, token in enumerate(model.text.ids(prompt)[: reader.tokens], reader.at):
            word, n = tokens.get(token, ("", 0))
            if word not in words or (beside := words[word][1]) is None:
                continue
            begin = 0
            for own in (beside[key] for key in ENCODERS if key in beside):  # as the text has them, side by side
                part = slice(begin, begin := begin + own.shape[-1])
                state = states[row, :, at, part]
                length = state.norm(dim=-1, keepdim=True)
                moved = state + length * own[row, :, n].to(state)
                values[row, :, at, part] = (
                    moved * length / moved.norm(dim=-1, keepdim=True).clamp_min(1e-12)
                    if norm is None
                    else norm(moved.to(norm.weight.dtype)).to(values)
                )
    return Texts(keys, values)


@contextmanager
def _last_norm(model: Any) -> Iterator[list[Tensor]]:
    """What the norm that gives the text was given, each time it ran."""
    seen: list[Tensor] = []
    if model.last_norm is None:
        yield seen
        return
    hook = model.last_norm.register_forward_pre_hook(here(lambda module, args: seen.append(args[0])))
    try:
        yield seen
    finally:
        hook.remove()


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
        with READING:
            ids = getattr(pipe, tokenizer)(words, add_special_tokens=False).input_ids
        if not ids:
            raise SfumatoError(f"{name} reads nothing in {words!r}; begin with a word that it knows, such as duck")
        found[key] = encoder.get_input_embeddings().weight[torch.tensor(ids)].float()
    return found


def spread(pipe: Any) -> dict[str, float]:
    """Standard deviation of all numbers of the vocabulary's embeddings, by encoder."""
    encoders = {key: getattr(pipe, part, None) for key, (part, _) in ENCODERS.items()}
    return {
        key: float(encoder.get_input_embeddings().weight.detach().float().std())
        for key, encoder in encoders.items()
        if encoder is not None
    }
