"""The bench of scenes: its keys, and that it measures what it says."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from sfumato.bench import scene
from sfumato.bench.scene import reconstruct, speed
from sfumato.bench.session import Session
from sfumato.scene.lifting import Lifting
from sfumato.scene.regions import Box


def test_every_key_has_a_meaning_and_a_measure():
    for module in (reconstruct, speed):
        keys = [key for some, _ in module.MEASURES for key in some]
        assert sorted(keys) == sorted(module.MEANINGS) and set(module.TARGETS) <= set(keys)
    every = [key for module in scene.MODULES for key in module.MEANINGS]
    assert len(every) == len(set(every))


def test_still_lifes_are_held_out_a_quarter(monkeypatch):
    seen = []

    def few(run, **less):
        def learned(views, *args, **options):
            seen.append((views, options))
            return run(views, *args, **{**options, "steps": 1, **less})

        return learned

    small = replace(reconstruct.STILL, cells=8, stages=(), rays=16, samples=4, coarse=8)
    monkeypatch.setattr(reconstruct, "STILL", small)
    monkeypatch.setattr(reconstruct, "reconstruct", few(reconstruct.reconstruct))
    monkeypatch.setattr(reconstruct, "reconstruct_by_gaussians", few(reconstruct.reconstruct_by_gaussians, count=8))
    monkeypatch.setattr(reconstruct, "VIEWS", 4)
    found = reconstruct.still(Session(2, 0, torch.device("cpu")))
    assert len(seen) == 4 and all(options["held_out"] == 4 for _, options in seen)
    assert seen[1][1]["steps"] == reconstruct.STEPS
    assert set(found) == {k for k in reconstruct.MEANINGS if k.startswith("reconstruct_")}
    assert all(isinstance(v, np.ndarray) and len(v) == 2 and np.isfinite(v).all() for v in found.values())
    assert torch.equal(seen[0][0].images, seen[1][0].images) and not torch.equal(seen[0][0].images, seen[2][0].images)
    assert not np.array_equal(found["reconstruct_psnr"], found["reconstruct_voxels_psnr"])


def test_speed_counts_all_samples(monkeypatch):
    monkeypatch.setattr(speed, "RAYS", 64)
    monkeypatch.setattr(time, "perf_counter", iter(range(100)).__next__)
    found = speed.rendered(Session(2, 0, torch.device("cpu")))
    rays = speed.orbit(1, (64, 64), fov=speed.NARROW).rays()
    enter, leave = Box().span(rays)
    assert bool((leave > enter).all())  # what misses the box is not work
    assert found == {"render_rays_per_second": 64 * speed.SAMPLES, "render_only_per_second": 64 * speed.SAMPLES}


def test_a_step_and_the_public_one_are_timed_on_equal_scenes(monkeypatch):
    monkeypatch.setattr(speed, "STEPS", 1)
    drawn, rendered = [], Lifting.render

    def render(self, viewpoints=None):
        drawn.append((viewpoints.cameras.poses, self.scene.field.settings()))
        return rendered(self, viewpoints)

    def ratio(ours, public):
        ours()
        public()
        return 0.5

    monkeypatch.setattr(Lifting, "render", render)
    session = Session(2, 0, torch.device("cpu"))
    monkeypatch.setattr(session, "ratio", ratio)
    assert speed.steps(session) == {"sds_step_over_public": 0.5}
    (one, a), (two, b) = drawn
    assert torch.equal(one, two) and len(one) == 1 and a == b
