"""A method that takes one image a run, as none of ours does."""

from __future__ import annotations

from typing import ClassVar

from sfumato.core.method import Method, Phases, Requires, Run


class Alone(Method):
    """Of one image a run."""

    requires: ClassVar = Requires(batch=False)

    def start(self, run: Run) -> Phases:
        return Phases()
