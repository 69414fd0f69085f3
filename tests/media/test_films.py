"""GIFs: the colours of their frames."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sfumato.media import pictures


@pytest.mark.parametrize("size", [(300, 300), (1000, 70)])
def test_a_large_frame_is_as_near_in_colours_chosen_by_some_of_its_pixels(size):
    """Within 2 dB of what all of them choose; of few colours it is itself."""
    x, y = np.meshgrid(*(np.linspace(0, 1, n) for n in size))
    waves = [128 + 127 * np.sin(a * x + b * y) for a, b in ((9, 2), (3, 8), (1, 5))]
    frame = Image.fromarray(np.stack(waves, -1).astype(np.uint8))

    def off(found: Image.Image) -> float:
        return float((np.asarray(found.convert("RGB"), float) - np.asarray(frame, float)).std())

    found = pictures.paletted(frame)
    assert found.size == size and found.mode == "P"
    assert off(found) < 10**0.1 * off(frame.quantize())
    flat = Image.new("RGB", size, (200, 30, 40))
    assert np.array_equal(np.asarray(pictures.paletted(flat).convert("RGB")), np.asarray(flat))
    small = frame.crop((0, 0, 64, 64))
    assert pictures.paletted(small) is small
