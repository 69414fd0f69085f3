"""The laws' models compute where ``--device`` and ``--dtype`` say."""

from __future__ import annotations

import families
import pytest


@pytest.fixture(scope="session")
def models(models, tmp_path_factory, device, dtype):
    """Name -> the family's tiny model."""
    if (device, dtype) == ("cpu", "float32"):
        return models
    return families.made(tmp_path_factory.mktemp("families"), device, dtype)


@pytest.fixture(scope="session")
def exact(dtype):
    """For what holds to rounding: skips where weights are coarser than the numbers that are compared."""
    if dtype != "float32":
        pytest.skip(f"exact to the rounding of float32, and weights are {dtype}")
