"""What a method says of itself: its docstring in parts, and what it asks of a run, in words."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, fields
from typing import Any

from sfumato.core.method import Requires

_ASKED = {
    "source": "two prompts, of what is edited and of the edit",
    "words": "a model that reads prompts",
    "uncond": "a guidance with an empty prompt",
    "windows": "whole images, not windows of a canvas",
    "batch": "one image at a time",
    "clip": "frames of a clip, by a model with motion",
}
"""A field of ``Requires`` that is not as usual, in words."""


@dataclass(frozen=True)
class About:
    """A docstring's parts: it begins ``Name (paper): what it does.``, and has paragraphs of needs and families."""

    summary: str
    """All of the first paragraph."""
    text: tuple[str, ...]
    """The paragraphs behind it, but those of needs and families."""
    needs: str = ""
    families: str = ""
    asks: tuple[str, ...] = ()
    """What it requires of a run."""

    @property
    def head(self) -> tuple[str, str, str]:
        """Name, paper and what it does; the name alone is always there."""
        found = re.fullmatch(r"([^(:]+?)(?: \((.+?)\))?: (.+)", self.summary)
        return (found[1], found[2] or "", found[3]) if found else (self.summary.rstrip("."), "", "")


def about(described: Any, kind: Any) -> About:
    """Of the docstring of a module or class, and the method in it."""
    first, *rest = (" ".join(p.split()) for p in (inspect.getdoc(described) or "").split("\n\n"))
    ends = {key: next((p for p in rest if p.startswith(f"{key}: ")), "") for key in ("Needs", "Families")}
    text = tuple(p for p in rest if p not in ends.values())
    needs, families = (value.partition(": ")[2] for value in ends.values())
    return About(first, text, needs, families, asked(getattr(kind, "requires", Requires())))


def asked(requires: Requires) -> tuple[str, ...]:
    """What a method requires, in words; nothing for one that takes any run."""
    named = [f for f in fields(requires) if f.name not in ("who", "set", "groups")]  # these refuse nothing
    unusual = [f.name for f in named if getattr(requires, f.name) != f.default]
    return tuple(_ASKED[name] for name in unusual)
