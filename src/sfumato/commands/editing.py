"""What commands that edit share: an edit as a command line asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato.tasks.starts import How, start_of

if TYPE_CHECKING:
    from sfumato.tasks.chain import Chain
    from sfumato.tasks.edit import Edit


def edit_of(
    chain: Chain,
    source: str,
    target: str,
    how: How | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    looks: str | None = None,
) -> Edit:
    """From the methods of a chain, and where the one that says so starts, or else ``how``."""
    from sfumato.tasks.edit import Edit

    chain = chain.given(seed=seed).stepped(steps)
    start = start_of(how, steps, guidance, seed, looks is not None)
    return Edit(source, target, start if looks is not None else chain.starter(start), chain.methods, guidance, looks)
