"""Which tokens of a source prompt a token of a target prompt stands for (Prompt-to-Prompt's word swap and refinement).

Words may become several tokens and may be repeated. A mapping is a matrix: target probabilities are source @ matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.prompts.words import Words


def replacement(source: Words, target: Words, tokens: int) -> Float[Tensor, "source target"]:
    """For prompts of equally many words: the i-th word stands for the i-th.

    A word that becomes more tokens shares the source's probability among them; everything behind moves along (in the
    authors' code not behind the last word swapped). Raises ``SfumatoError`` when the prompts differ in their number of
    words.
    """
    if len(source) != len(target):
        raise SfumatoError(
            f"a word swap needs prompts of equally many words, got {len(source)} and {len(target)}; use refinement"
        )
    matrix = torch.zeros(tokens, tokens)
    matrix[0, 0] = 1
    at = [1, 1]
    for (word, a), (other, b) in zip(source, target, strict=True):
        if word == other or a.stop - a.start == b.stop - b.start:
            matrix[range(a.start, a.stop), range(b.start, b.stop)] = 1
        else:
            matrix[a, b] = 1 / (b.stop - b.start)
        at = [a.stop, b.stop]
    rest = tokens - max(at)
    matrix[range(at[0], at[0] + rest), range(at[1], at[1] + rest)] = 1
    if at[1] < at[0]:  # the target is shorter: its last padding has no partner left and stays its own
        tail = range(at[1] + rest, tokens)
        matrix[tail, tail] = 1
    return matrix


Padding = Literal["position", "end"]


def refinement(
    source: Words, target: Words, tokens: int, padding: Padding = "position"
) -> tuple[Float[Tensor, "source target"], Bool[Tensor, " target"]]:
    """For a prompt with words added: (matrix, which target tokens have a source).

    Words are aligned by Needleman-Wunsch with the authors' scores: a gap costs nothing, a match counts 1, a wrong pair
    -1. The end token stands for the end token. Padding stands for what has its position, as in the authors' code, which
    is a word where the source is longer; or, counted from the end token (``end``), for padding alone.
    """
    names = [w for w, _ in source], [w for w, _ in target]
    pairs = align(*names)
    matrix, known = torch.zeros(tokens, tokens), torch.zeros(tokens, dtype=torch.bool)
    matrix[0, 0], known[0] = 1, True
    for i, j in pairs:
        a, b = source[i][1], target[j][1]
        matrix[range(a.start, a.stop), range(b.start, b.stop)] = 1
        known[b] = True
    ends = [words[-1][1].stop if words else 1 for words in (source, target)]
    matrix[ends[0], ends[1]] = 1
    for j in range(ends[1] + 1, tokens):  # of the source's as many as it has
        matrix[j if padding == "position" else min(ends[0] + j - ends[1], tokens - 1), j] = 1
    known[ends[1] :] = True
    return matrix, known


def align(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of positions of equal words in the best alignment; of equally good ones that which pairs earlier words."""
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in reversed(range(len(a))):
        for j in reversed(range(len(b))):
            match = best[i + 1][j + 1] + (1 if a[i] == b[j] else -1)
            best[i][j] = max(match, best[i + 1][j], best[i][j + 1])
    out, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j] and best[i][j] == best[i + 1][j + 1] + 1:
            out.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            i += 1
    return out
