"""Shared by the tests of the benches."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def times_are_taken_once(monkeypatch):
    """What they are is not looked at."""
    from sfumato.bench import core, session

    monkeypatch.setattr(session, "ROUNDS", 1)
    monkeypatch.setattr(core, "PASSES", 1)
