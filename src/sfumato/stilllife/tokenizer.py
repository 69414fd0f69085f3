"""The files of a ``CLIPTokenizer`` for the captions' words: byte-level BPE in which each word is one token.

The vocabulary is laid out as CLIP's: 256 bytes, 256 bytes that end a word, one entry per merge, start, end. The bytes
take whatever the merges do not, so no text is ever unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path

from sfumato.io.files import write_text
from sfumato.stilllife.captions import WORDS

LENGTH = 77
"""Tokens of a prompt, with start and end."""
START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def vocab_size() -> int:
    """Number of tokens, start and end included."""
    return len(_vocabulary())


def special_ids() -> tuple[int, int]:
    """Ids of start and end; the end is the highest id and pads, as in CLIP."""
    return vocab_size() - 2, vocab_size() - 1


def write_tokenizer(folder: str | Path) -> None:
    """Write the tokenizer into a folder (made if need be) for ``CLIPTokenizer.from_pretrained``; always the same bytes.

    Raises ``SfumatoError`` when the folder cannot be written.
    """
    folder = Path(folder)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = special | {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
    merges = "".join(f"{a} {b}\n" for a, b in _merges())
    write_text(folder / "vocab.json", json.dumps(_vocabulary(), ensure_ascii=False) + "\n")
    write_text(folder / "merges.txt", "#version: 0.2\n" + merges)
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    write_text(folder / "special_tokens_map.json", json.dumps(special, indent=2) + "\n")


@cache
def _vocabulary() -> dict[str, int]:
    letters = _byte_letters()
    tokens = [*letters, *(c + _WORD_END for c in letters), *dict.fromkeys(a + b for a, b in _merges()), START, END]
    return {token: i for i, token in enumerate(tokens)}


@cache
def _merges() -> tuple[tuple[str, str], ...]:
    """Pairs in order of priority.

    Each word in turn is split by the merges so far and gets the merges it lacks, at lower priority than all others:
    since the pair of highest priority always goes first, later merges cannot come between the pieces of earlier words.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in WORDS:
        while len(pieces := _split(word, ranks)) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
    return tuple(ranks)


def _split(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one ASCII word."""
    pieces = [*word[:-1], word[-1] + _WORD_END]
    while pairs := {pair for pair in pairwise(pieces) if pair in ranks}:
        pieces = list(_fuse(pieces, min(pairs, key=ranks.__getitem__)))
    return pieces


def _fuse(pieces: list[str], pair: tuple[str, str]) -> Iterable[str]:
    i = 0
    while i < len(pieces):
        step = 2 if (*pieces[i : i + 2],) == pair else 1
        yield "".join(pieces[i : i + step])
        i += step


def _byte_letters() -> list[str]:
    """A visible letter for each byte as GPT-2 and CLIP choose them: itself if visible, else one from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, visible), *(chr(256 + i) for i in range(256 - len(visible)))]
