"""Warp error and motions: nothing is lost along a true flow, what is hidden does not count, wrong ways are seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.metrics.video import warp_error
from sfumato.ops.motion import Motion


def texture(n: int, right: int, down: int, size: int = 24):
    """A texture that moves by whole pixels."""
    whole = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    at = [(20 - i * down, 20 - i * right) for i in range(n)]
    return torch.stack([whole[:, y : y + size, x : x + size] for y, x in at])


@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, 0), (-1, 3)])
def test_what_moves_evenly_has_no_error_along_its_way_and_one_along_another(right, down):
    frames = texture(4, right, down)
    error = warp_error(frames, Motion.even(right / 24, down / 24, 4, (24, 24)))
    assert error.shape == (3,) and (error < 1e-10).all()
    assert (warp_error(frames, Motion.even((right + 1) / 24, down / 24, 4)) > 0.05).all()  # flow of another size


def test_between_pixels_it_is_read_bilinearly():
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(48.0), indexing="ij")
    ramp = torch.stack([(0.01 * (x - 0.3 * i) + 0.005 * (y - 0.7 * i)).expand(3, 24, 48) + 0.2 for i in range(3)])
    motion = Motion.even(0.3 / 48, 0.7 / 24, 3, (24, 48))
    inside = replace(motion, gone=torch.ones_like(motion.gone))
    inside.gone[:, 2:-2, 2:-2] = False
    assert (warp_error(ramp, inside) < 1e-10).all()


def test_what_the_next_frame_does_not_show_does_not_count_and_all_else_does():
    frames, still = torch.full((2, 3, 10, 10), 0.5), Motion.even(0, 0, 2, (10, 10))
    frames[1, :, :2] = 0.9
    assert warp_error(frames, still).item() == pytest.approx(0.2 * 0.16)
    gone = still.gone.clone()
    gone[:, :2] = True
    assert warp_error(frames, replace(still, gone=gone)).item() == 0
    gone[:, 5:] = True
    gone[:, :2] = False
    assert warp_error(frames, replace(still, gone=gone)).item() == pytest.approx(0.4 * 0.16)
    assert warp_error(frames, replace(still, gone=gone | True)).isnan().all()


def test_a_clip_of_the_world_goes_along_its_own_flow():
    from sfumato.stilllife import moves
    from sfumato.stilllife.scene import sample_scene

    clip = moves.clip(sample_scene(np.random.default_rng(3), count=2), 3, size=64)
    flows = (clip.forward, clip.backward, clip.forward_occluded, clip.backward_occluded)
    motion = Motion.of_pixels(*flows)
    along = warp_error(clip.frames, motion).mean()
    still = warp_error(clip.frames, replace(motion, forward=0 * motion.forward)).mean()
    wrong = warp_error(clip.frames, replace(motion, forward=-motion.forward)).mean()
    assert along < still / 4 < wrong / 4
    seen = warp_error(clip.frames, replace(motion, gone=torch.zeros_like(motion.gone))).mean()
    assert along < seen  # what is hidden goes nowhere
    back = warp_error(clip.frames.flip(0), Motion(*(f.flip(0) for f in (motion.backward, motion.forward)),
                                                  *(f.flip(0) for f in (motion.new, motion.gone))))  # fmt: skip
    assert back.mean() < still / 4


def test_parts_of_a_motion_are_of_their_frames():
    motion = Motion.even(0.1, 0, 5)
    assert len(motion) == 5 and len(motion[1:4]) == 3 and len(motion[2:3]) == 1
    for wrong in (slice(0, 4, 2), slice(3, 3)):
        with pytest.raises(SfumatoError, match="one or more, one after the other"):
            motion[wrong]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (torch.zeros(1, 3, 8, 8), "a warp error is of two frames or more, got 1"),
        (torch.zeros(4, 3, 8, 8), "the motion is of 3 frames, and there are 4"),
        (torch.zeros(3, 3, 8, 16), "of frames of 64 x 64, and these of 8 x 16 differ in shape"),
    ],
)
def test_a_motion_of_other_frames_is_refused(frames, words):
    with pytest.raises(SfumatoError, match=words):
        warp_error(frames, Motion.even(0, 0, 3))
