"""The bench of the core, on the tiny model: it measures what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.bench import core, report
from sfumato.inversion import DDIMInversion, NullText, invert


@pytest.fixture
def session(here, monkeypatch):
    monkeypatch.setattr(core, "STEPS", 2)
    return core.CoreSession(1, 0, torch.device("cpu"))


def test_every_key_is_measured(session):
    measured = [key for keys, _ in core.MEASURES for key in keys]
    assert sorted(measured) == sorted(core.MEANINGS) and set(core.TARGETS) <= set(core.MEANINGS)
    found = report.gather(report.Report("core", 2, 0, "cpu", core.MEANINGS, core.TARGETS), core.MEASURES, session)
    assert not found.why and set(found.figures) == set(core.MEANINGS)
    results = found.results
    for key in ("direct_psnr", "edit_friendly_psnr", "edict_psnr"):
        assert abs(results[key]) < 0.1, key
    assert all(np.isfinite(v) for v in results.values())
    assert set(found.methods) >= {"PromptToPrompt", "SDEdit", "no edit", "NullText", "Direct"}
    assert found.methods["no edit"]["background_psnr"] > 40  # nothing is done to it
    assert found.methods["no edit"]["success"] == 0


def test_the_plain_port_fits_what_ours_does(session):
    (images, said), *_ = core._described(session, "null_text_psnr", 1)
    track = invert(session.model, images, said, DDIMInversion(steps=core.STEPS)).track
    ours = invert(session.model, images, said, NullText(core.GUIDANCE, steps=core.STEPS)).uncond
    theirs = core.plain_null_text(session.model, track, said[0])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-2)
    assert not any(p.requires_grad or p.grad is not None for p in session.model.network.parameters())


def test_the_best_threshold():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:3] = True
    assert core.best_iou(mask.float(), mask) == 1
    assert core.best_iou(torch.arange(16.0).view(4, 4), mask) < 0.5
    noisy = mask.float()
    noisy[0, 0] = 2.0  # one pixel too many at any threshold
    assert core.best_iou(noisy, mask) == pytest.approx(4 / 5)
