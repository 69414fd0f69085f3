"""Clips that are edited: cases are what they should be, and every key has a meaning and a measure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sfumato.bench.sets import clips
from sfumato.methods.sets.noise import IntegralWarp
from sfumato.metrics.video import warp_error


def test_keys_have_meanings_and_measures():
    assert {key for keys, _ in clips.MEASURES for key in keys} == {*clips.MEANINGS} and {*clips.TARGETS} <= {
        *clips.MEANINGS
    }


@pytest.mark.parametrize("kind", ["recolour", "reshape"])
def test_a_case_is_a_clip_and_its_counterfactual_with_the_flow_of_what_it_should_become(kind):
    case = clips.case(np.random.default_rng(4), kind, 7, frames=3, size=48)
    assert case.before.shape == case.after.shape == (3, 3, 48, 48) and len(case.motion) == 3
    along = warp_error(case.after, case.motion).mean()
    assert along < warp_error(case.after, replace(case.motion, forward=-case.motion.forward)).mean() / 4
    mask = (case.before - case.after).abs().amax(1) > 0.1
    assert 0.005 < mask.float().mean() < 0.6 and (case.edit.captions[0] != case.edit.captions[1])


def test_noise_along_a_clip_s_flow_is_like_itself_there():
    case = clips.case(np.random.default_rng(4), "recolour", 7, frames=3, size=64)
    x = IntegralWarp(case.motion).draw([1, 2, 3], (64, 8, 8))
    away = replace(case.motion, forward=case.motion.forward + 0.25)
    assert clips._along(x, case.motion) > 0.5 and abs(clips._along(x, away)) < 0.1


@pytest.mark.parametrize("name", list(clips.RUNNERS))
def test_a_method_is_asked_for_by_a_case(name):
    case = clips.Case(None, torch.zeros(2), torch.zeros(2), None, 5)  # pyright: ignore[reportArgumentType]
    asked = clips.RUNNERS[name](case)
    assert asked.unit and ("Shared" in asked.unit) == ("shared" in name)


@pytest.mark.slow
def test_statistics_and_memory(tmp_path):
    session = clips.ClipSession(1, 0, torch.device("cpu"), tmp_path)
    found = clips.noise(session)
    assert all(found[key] < 5 for key in ("noise_mean", "noise_variance", "noise_neighbours"))
    assert found["noise_along_flow"] > 0.5 and found["noise_blended"] < 0.6
    assert clips.memory(session)["memory_per_frame"] < 2
