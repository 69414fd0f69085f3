"""The bench of score distillation, on the tiny model: every key has a figure, and what was measured is kept."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from sfumato.bench import distill
from sfumato.bench.ports.threestudio import PublicSDI, PublicSDS
from sfumato.core.guidance import CFG
from sfumato.distill import GuidedModel
from sfumato.experiments import kappa_error
from sfumato.methods.distill.score_distillation import score_distillation

CPU = torch.device("cpu")


@pytest.fixture
def quick(here, monkeypatch):
    """Everything as small as it can be."""
    for name, value in {"STEPS": 2, "SAMPLED": 3, "SET": 2, "VIEWS": 2}.items():
        monkeypatch.setattr(distill, name, value)
    monkeypatch.setattr(distill, "METHODS", {k: replace(t, steps=2) for k, t in distill.METHODS.items()})
    monkeypatch.setattr(distill, "COLLABORATING", {k: replace(t, steps=2) for k, t in distill.COLLABORATING.items()})
    shorter = {k: e if e.how is None else replace(e, how=replace(e.how, steps=2)) for k, e in distill.EDITORS.items()}
    monkeypatch.setattr(distill, "EDITORS", shorter)
    monkeypatch.setattr(distill, "PARTS", (0.3,))
    monkeypatch.setattr(distill, "KappaError", partial(distill.KappaError, levels=2))
    for name in ("fixed_point", "regressed"):
        monkeypatch.setattr(kappa_error, name, partial(getattr(kappa_error, name), rounds=2))
    return distill


def test_every_key_has_a_figure_and_a_second_run_paints_nothing(quick, tmp_path, monkeypatch):
    report = quick.run(1, 0, "cpu", tmp_path)
    assert set(report.results) == set(distill.MEANINGS)
    assert report.why == {}
    assert all(value is not None and np.isfinite(value) for value in report.results.values())
    assert set(distill.METHODS) < set(report.compared["prompts"].rows)
    for name in ("plain-sampling.png", "renders.png", "set-0-on.png", "edit-0-CSD-Edit.png", "edit-0-truth.png"):
        assert (tmp_path / name).exists()

    def never(*args):
        raise AssertionError("what was measured is measured again")

    monkeypatch.setattr(distill.Tried, "run", never)
    monkeypatch.setattr(distill.Editor, "run", never)
    kept = [row for row in distill.MEASURES if row[1] in (distill.prompts, distill.collaboration, distill.editing)]
    monkeypatch.setattr(distill, "MEASURES", kept)
    monkeypatch.setattr(distill, "MEANINGS", {key: distill.MEANINGS[key] for keys, _ in kept for key in keys})
    again = quick.run(1, 0, "cpu", tmp_path)
    assert again.results == {key: report.results[key] for key in again.results}


def test_the_sides_of_a_world_are_changed_alike_and_agree_outside_of_the_change(quick):
    world = distill.Edited.drawn(np.random.default_rng(0), "cpu")
    assert len({edit.instruction for edit in world.edits}) == 1
    assert len({edit.before.camera for edit in world.edits}) == distill.VIEWS
    for edit, before, after in zip(world.edits, world.before, world.after, strict=True):
        kept = ~distill.change.masks(edit)
        assert (before - after).abs()[:, kept].max() <= 1 / 255 + 1e-6
        assert (before - after).abs().max() > 0.1


def test_the_plain_port_of_score_distillation_has_the_gradient_of_ours(quick):
    """The same level, noise and guidance: threestudio's loss, differentiated, is w (eps - noise) of one image."""
    model = distill.DistillSession(2, 0, CPU).model
    x = model.latents([0], 16, 16).requires_grad_()
    port = PublicSDS(model, distill.PROMPT, 7.5)
    levels = model.schedule.at(torch.arange(1000))
    torch.testing.assert_close(port.alphas, (levels.alpha**2).float())
    torch.manual_seed(3)
    port.loss(x, 400).backward()
    torch.manual_seed(3)
    noise = torch.randn_like(x)
    prior = GuidedModel(model, (distill.PROMPT,), CFG(7.5))
    at = model.schedule.at(400)
    with torch.no_grad():
        ours = score_distillation(prior, x, at, noise)
    torch.testing.assert_close(x.grad, ours, atol=1e-5, rtol=1e-4)


def test_the_plain_port_of_inversion_asks_as_often_as_the_public_code(quick):
    """From a step before the first level to past t, and once more: 12 times at 980, 5 at 250."""
    model = distill.DistillSession(2, 0, CPU).model
    port, asked = PublicSDI(model, distill.PROMPT, 7.5), []
    plain = port.noise
    port.noise = lambda x, t, scale: (asked.append((t, scale)), plain(x, t, scale))[1]
    x = model.latents([0], 16, 16).requires_grad_()
    for t, times in ((980, 12), (250, 5)):
        asked.clear()
        port.loss(x, t).backward()
        assert [t for t, _ in asked] == [max(0, i * 100 + 1) for i in range(-1, times - 2)] + [t]
        assert [scale for _, scale in asked] == [-7.5] * (times - 1) + [7.5]
    assert x.grad.isfinite().all()
