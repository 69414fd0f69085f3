"""Shared by the tests of the benches."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True, scope="module")
def only_what_a_bench_makes_is_looked_through():
    """A bench collects garbage before each picture: half a second of what the tests' process has imported by now."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
