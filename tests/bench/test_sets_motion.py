"""The bench of clips from words: what it says of clips that are known, and without an adapter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.bench import sets
from sfumato.bench.sets import motion
from sfumato.errors import SfumatoError
from sfumato.stilllife import weights
from sfumato.stilllife.oracle import Reading, ReadThing


def reading(kind: str, colour: str = "red", ground: str = "grass") -> Reading:
    thing = ReadThing(kind, colour, "plain", (0, 0, 9, 9), (4.0, 4.0), 81, False)
    return Reading((thing,), ground, "day", "photo", np.ones((9, 9), int))


def waves(right: float, frames: int = 4) -> torch.Tensor:
    """A soft pattern that goes to the right by so many pixels a frame."""
    x = torch.arange(64.0)
    rows = [torch.sin((x - right * f) / 5)[None] + torch.sin(x / 7)[:, None] for f in range(frames)]
    return (torch.stack(rows)[:, None].expand(-1, 3, -1, -1) / 4 + 0.5).contiguous()


def test_what_is_read_of_a_clip():
    asked = ("cube", "red", "grass")
    same = motion.judged(waves(0), [reading("cube")] * 4, asked)
    assert (same["identity"], same["whole"], same["success"]) == (1, 1, 1)
    assert same["flow"] == pytest.approx(0, abs=1e-3) and (same["change"], same["followed"]) == (0, 1)
    mixed = [reading("cube"), reading("duck"), reading("duck"), reading("duck", ground="sand")]
    row = motion.judged(waves(0), mixed, asked)
    assert (row["identity"], row["whole"], row["success"]) == (0.5, 0, 0.25)
    none = Reading((), "grass", "day", "photo", np.zeros((9, 9), int))
    assert motion.judged(waves(0), [none] * 4, asked)["identity"] == 0


def test_what_moves_is_measured_and_followed():
    row, still = (motion.judged(waves(right), [reading("cube")] * 4, None) for right in (1.5, 0.0))
    noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    shaking = motion.judged(noise, [reading("cube")] * 4, None)
    assert row["flow"] == pytest.approx(1.5, rel=0.2) and still["flow"] < 0.01 and row["success"] is None
    assert row["warp_error"] < 0.1 * row["change"] and row["followed"] > 0.7 > 0.3 > shaking["followed"]


def test_without_an_adapter_it_is_skipped_in_one_line(monkeypatch):
    def none(file: str) -> None:
        raise SfumatoError(f"this version ships no {file}; it has: unet.safetensors")

    monkeypatch.setattr(weights, "motion", lambda: none("motion.safetensors"))
    report = sets.run(1, 0, "cpu", modules=[motion])
    assert report.results == dict.fromkeys(motion.MEANINGS)
    assert set(report.why.values()) == {"this version ships no motion.safetensors; it has: unet.safetensors"}
