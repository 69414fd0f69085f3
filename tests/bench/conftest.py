"""Shared by the tests of the benches."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def times_are_taken_once(monkeypatch):
    """What they are is not looked at."""
    from sfumato.bench import core, session

    monkeypatch.setattr(session, "ROUNDS", 1)
    monkeypatch.setattr(core, "PASSES", 1)


@pytest.fixture(autouse=True)
def scenes_are_traced_once(monkeypatch):
    """A second run draws the scenes of the first; what their rays meet is found once a test."""
    from sfumato.stilllife import render

    plain, kept = render.trace, {}

    def trace(scenes, size=128, device=None, rays=None):
        if rays is not None:
            return plain(scenes, size, device, rays)
        key = (tuple(scenes), size, str(device or "cpu"))
        if key not in kept:
            kept[key] = plain(scenes, size, device)
        return kept[key]

    monkeypatch.setattr(render, "trace", trace)
