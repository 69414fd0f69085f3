"""The one road of text: what a pipeline's tokenizers make of a prompt, its weights, its words, what is cut off."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from threading import RLock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.prompts import weights
from sfumato.prompts.words import WordsRead

READING = RLock()
"""A tokenizer keeps how it pads from call to call, so that threads read one after the other."""
_NAMED = 12  # words in a note
_TOKEN = re.compile(r"<(.+)\|\d+>")


@contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' own remarks on prompts: that they are cut off, that captions are not cleaned."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    before = [(library, library.get_verbosity()) for library in (diffusers, transformers)]
    try:
        for library, _ in before:
            library.set_verbosity_error()
        yield
    finally:
        for library, level in before:
            library.set_verbosity(level)


def bound(pipe: Any) -> None:
    """Let no tokenizer of a pipeline give a CLIP more tokens than it has positions for; some do not say how many."""
    for number in ("", "_2", "_3"):
        tokenizer, encoder = (getattr(pipe, part + number, None) for part in ("tokenizer", "text_encoder"))
        most = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
        if most is None or tokenizer is None or tokenizer.model_max_length <= most:
            continue
        tokenizer.model_max_length = most
        if not number and hasattr(pipe, "tokenizer_max_length"):
            pipe.tokenizer_max_length = most


@dataclass(frozen=True)
class Reader:
    """One of a pipeline's tokenizers: how many tokens of it the network reads, and where."""

    part: str
    """Of the pipeline, such as ``tokenizer_2``."""
    tokens: int
    """With start and end."""
    at: int = 0
    """Where the first of them lies in the text that the network reads."""

    @property
    def encoder(self) -> str:
        """The part of the pipeline that reads these tokens."""
        return self.part.replace("tokenizer", "text_encoder")


@dataclass(frozen=True)
class Read:
    """A prompt as a tokenizer reads it."""

    ids: tuple[int, ...]
    """All of them, with start and end."""
    words: tuple[slice, ...]
    """The tokens of each word, also behind ``stop``."""
    weights: tuple[float, ...]
    """Of each token."""
    stop: int
    """One past the last token of a word that the network reads."""

    @property
    def seen(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """What of it reaches the network."""
        return self.ids[: self.stop], self.weights[: self.stop]


class Text:
    """The prompts of a pipeline.

    ``readers``: the tokenizers whose tokens the network attends to; the first says where words lie.
    ``clean``: what the pipeline makes of a text before it is tokenized. ``pooled``: the tokenizer whose tokens the
    network reads as one vector alone. ``own``: tokens of a tokenizer that its encoder has other vectors for.
    """

    def __init__(
        self,
        name: str,
        pipe: Any,
        readers: Sequence[Reader],
        clean: Callable[[str], str] = str,
        pooled: Reader | None = None,
        own: Callable[[str], frozenset[int]] | None = None,
    ):
        self.own = own
        self.name, self.pipe, self.readers, self.clean, self.pooled = name, pipe, tuple(readers), clean, pooled
        self.noted: set[str] = set()

    @property
    def tokens(self) -> int:
        """Length of the text that the network reads."""
        return max(reader.at + reader.tokens for reader in self.readers)

    @property
    def tokenizer(self) -> Any:
        return getattr(self.pipe, self.readers[0].part)

    def plain(self, prompt: str) -> str:
        """What the encoders are given: without weights, and with learned words as the tokenizer has them."""
        return _spelled(weights.plain(prompt), self.tokenizer)[0]

    def words(self, prompt: str) -> WordsRead:
        """The words of a prompt, without their weights, and which tokens of the text each became."""
        return self._words(prompt, self.readers[0])

    def _words(self, prompt: str, reader: Reader) -> WordsRead:
        read, words = self._read(prompt, reader), weights.plain(prompt).split()
        kept = sum(span.stop <= read.stop for span in read.words)
        spans = [slice(reader.at + span.start, reader.at + span.stop) for span in read.words]
        return WordsRead(zip(words[:kept], spans[:kept], strict=True), words[kept:])

    def weights(self, prompts: Sequence[str], text: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"] | None:
        """What each token of these prompts' text counts; None where all count the same."""
        if all(piece.weight == 1 for prompt in prompts for piece in weights.pieces(prompt)):
            return None
        out = torch.ones(text.shape[:2])
        for row, prompt in zip(out, prompts, strict=True):
            for reader in self.readers:
                _, seen = self._read(prompt, reader).seen
                row[reader.at : reader.at + len(seen)] = torch.tensor(seen)
        return out.to(text.device)

    def ids(self, prompt: str) -> tuple[int, ...]:
        """All tokens of a prompt by the first tokenizer, with start and end, also those that are cut off."""
        return self._read(prompt, self.readers[0]).ids

    def remark(self, prompt: str) -> str | None:
        """What a person should know of a prompt that is not seen to its end; said once."""
        if prompt in self.noted:
            return None
        first, last = self.readers[0], self.readers[-1]
        if not (cut := self.words(prompt).cut):
            first, last = self.pooled or first, first
            cut = self._words(prompt, first).cut
        if not cut:
            return None
        self.noted.add(prompt)
        read, longest = self._read(prompt, first), self._read(prompt, last)
        named = " ".join(cut[:_NAMED]) + (f" and {len(cut) - _NAMED} more" if len(cut) > _NAMED else "")
        begin = read.words[0].start
        whole = last is not first and longest.stop >= longest.words[-1].stop
        what = "reads" if first in self.readers else "pools"
        but = f" (but not by {last.part})" if whole else ""
        return (
            f"the prompt has {read.words[-1].stop - begin} tokens, {self.name} {what} the first {read.stop - begin}; "
            f"the rest is left out{but}: {named}"
        )

    def check_known(self, prompt: str) -> None:
        """Raise ``SfumatoError`` for a token of which an encoder has no vector."""
        for reader in (*self.readers, *([self.pooled] if self.pooled else [])):
            rows = getattr(self.pipe, reader.encoder).get_input_embeddings().num_embeddings
            own = frozenset() if self.own is None else self.own(reader.part)
            if missing := [i for i in self._read(prompt, reader).ids if i >= rows and i not in own]:
                word = getattr(self.pipe, reader.part).convert_ids_to_tokens(missing[0])
                raise SfumatoError(
                    f"{word!r} is a token of the {reader.part} of {self.name}, and the {reader.encoder} has no vector "
                    "of it; load the word's file by embeddings, or the tokenizer that the encoder was trained with"
                )

    def check_change(self, source: str, target: str) -> None:
        """Raise ``SfumatoError`` where two prompts differ only in what is cut off, so that nothing can change."""
        if source == target or not (self.words(source).cut or self.words(target).cut):
            return
        if all(self._read(source, reader).seen == self._read(target, reader).seen for reader in self.readers):
            read = self._read(target, self.readers[0])
            most = read.stop - read.words[0].start
            raise SfumatoError(
                f"source and target differ only in what is cut off: {self.name} reads the first {most} tokens of a "
                "prompt; shorten both, or say what changes earlier"
            )

    def _read(self, prompt: str, reader: Reader) -> Read:
        tokenizer = getattr(self.pipe, reader.part)
        if not tokenizer.is_fast:
            raise SfumatoError(
                f"the {reader.part} of {self.name} does not say where in a text its tokens lie; load a fast tokenizer"
            )
        text = weights.plain(prompt)
        with READING:
            seen, origin = self._seen(text, tokenizer)
            made = tokenizer(seen, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        word_of, letters = _word_of(text), weights.letters(prompt)
        own = [i for i, special in enumerate(made.special_tokens_mask) if not special and text.strip()]
        first, end = (own[0], own[-1] + 1) if own else (1, 1)
        counts, each = [0] * len(text.split()), [1.0] * len(made.input_ids)
        for i in own:
            a, b = made.offset_mapping[i]
            letter = origin[min(max(a, b - 1), len(origin) - 1)]
            counts[word_of[letter]] += 1
            each[i] = letters[letter]
        ends = [*accumulate(counts, initial=first)]
        closing = len(made.input_ids) - end if own else 1
        return Read(
            tuple(made.input_ids),
            tuple(slice(a, b) for a, b in pairwise(ends)),
            tuple(each),
            min(end, reader.tokens - closing),
        )

    def _seen(self, text: str, tokenizer: Any) -> tuple[str, list[int]]:
        """The text that a tokenizer is given, and which letter of ``text`` each of its letters comes from."""
        if (clean := self.clean(text)) != text:
            return clean, _aligned(text, clean)
        text, before = _spelled(text, tokenizer)
        convert = getattr(self.pipe, "maybe_convert_prompt", None)
        if convert is None or not tokenizer.added_tokens_encoder:
            return text, before
        out, origin = "", []
        for found in re.finditer(r"\s+|\S+", text):
            part = found[0] if found[0].isspace() else convert(found[0], tokenizer)
            out += part
            origin += [before[found.start() + at] for at in _aligned(found[0], part)]
        return out, origin


def t5_text(name: str, pipe: Any, tokens: int) -> Text:
    """The prompts of a pipeline that reads its T5's first tokens, of captions that it cleans."""

    def clean(text: str) -> str:
        with quietly():
            return pipe._text_preprocessing(text, clean_caption=True)[0]

    return Text(name, pipe, [Reader("tokenizer", tokens)], clean)


def token_of(word: str, number: int) -> str:
    """What a tokenizer knows a vector of a learned word as: a name that no prompt has, nor another word within it."""
    return f"<{' '.join(word.lower().split())}|{number}>"


def _spelled(text: str, tokenizer: Any) -> tuple[str, list[int]]:
    """With whole learned words, large or small, as their vectors' tokens; and where each letter was."""
    known: dict[str, list[str]] = {}
    for token in tokenizer.added_tokens_encoder:
        if found := _TOKEN.fullmatch(token):
            known.setdefault(found[1], []).append(token)
    if not known:
        return text, [*range(len(text))]
    longest_first = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in sorted(known, key=len, reverse=True))
    out, origin, at = "", [], 0
    for found in re.finditer(rf"(?<!\w)(?:{longest_first})(?!\w)", text, re.IGNORECASE):
        tokens = " ".join(known[" ".join(found[0].lower().split())])
        out += text[at : found.start()] + tokens
        origin += [*range(at, found.start()), *[found.start()] * len(tokens)]
        at = found.end()
    return out + text[at:], [*origin, *range(at, len(text))]


def _word_of(text: str) -> list[int]:
    """Which word each letter belongs to; a space to the word behind it."""
    starts = [found.start() for found in re.finditer(r"\S+", text)]
    ends = [found.end() for found in re.finditer(r"\S+", text)]
    return [min(bisect_right(ends, i), len(starts) - 1) for i in range(len(text))]


def _aligned(old: str, new: str) -> list[int]:
    """For each letter of a text that was rewritten, where it was; of an added one, where that before it was."""
    origin = [0] * len(new)
    for a, b, size in SequenceMatcher(None, old.lower(), new.lower(), autojunk=False).get_matching_blocks():
        origin[b : b + size] = range(a, a + size)
    return [*accumulate(origin, max)]
