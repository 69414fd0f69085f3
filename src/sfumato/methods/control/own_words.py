"""Which words of a method's fields the images of a batch have, where every image has its own prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from sfumato.core.method import Run
from sfumato.errors import SfumatoError
from sfumato.prompts.words import spans


def prompts_of(run: Run) -> list[str]:
    """One an image, as the images lie: stream by stream."""
    return [prompt for some in run.prompts.values() for prompt in some]


def own_words(run: Run, phrases: Sequence[str]) -> list[tuple[str, ...]]:
    """The phrases all of whose words each image's prompt has. ``SfumatoError`` for one that no prompt has."""
    prompts = prompts_of(run)
    out = [tuple(p for p in phrases if _has(run, prompt, p)) for prompt in prompts]
    for phrase in phrases:
        if not any(phrase in some for some in out):
            for word in phrase.split() or [phrase]:
                if not any(_has(run, prompt, word) for prompt in prompts):
                    spans(run.model.words(prompts[0]), word)  # says which words there are
            raise SfumatoError(f"no prompt has all words of {phrase!r}; name words that stand in one prompt")
    return out


def occurrences(run: Run, prompt: str, phrase: str) -> list[list[int]]:
    """The tokens of each place where a phrase stands in a prompt. ``SfumatoError`` when there is none."""
    words = run.model.words(prompt)
    tokens, starts = spans(words, phrase), {at.start for _, at in words}
    begins = [i for i, t in enumerate(tokens) if t in starts][:: len(phrase.split())]
    return [tokens[a:b] for a, b in pairwise([*begins, len(tokens)])]


def _has(run: Run, prompt: str, phrase: str) -> bool:
    words = run.model.words(prompt)
    try:
        return all(spans(words, word) for word in phrase.split() or [phrase])
    except SfumatoError:
        return False
