"""The words of a prompt among its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.errors import SfumatoError

Words = Sequence[tuple[str, slice]]
"""Each word and the tokens that it became, as ``Backbone.words`` tells them."""


def spans(words: Words, wanted: str) -> list[int]:
    """The tokens of a word or phrase, everywhere it occurs. ``SfumatoError`` when the prompt has none such."""
    asked = wanted.lower().split()
    have = [w.lower().strip(",.;:!?") for w, _ in words]
    out = []
    for i in range(len(have) - len(asked) + 1):
        if have[i : i + len(asked)] == asked:
            for _, at in words[i : i + len(asked)]:
                out.extend(range(at.start, at.stop))
    if not out or not asked:
        raise SfumatoError(f"the prompt has no {wanted!r}; its words are: {', '.join(have)}")
    return out
