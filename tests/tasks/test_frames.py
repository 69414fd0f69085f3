"""What is known of a video's frames beside words: pictures to steer by, a part that may change, where they move."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sfumato.core.conditions import Cond
from sfumato.errors import SfumatoError
from sfumato.media import images
from sfumato.ops import flow
from sfumato.ops.blur import blur
from sfumato.ops.motion import Motion
from sfumato.ops.warps import Similarity
from sfumato.prompts.layout import Mask
from sfumato.tasks.frames import Aligned, Reads, motion_of

MODEL = SimpleNamespace(size=32, multiple=8, factor=8)


def picture(i: int, size=(32, 32)) -> Image.Image:
    return Image.new("RGB", size, (10 * i, 0, 255 - i))


class Film:
    """Frames that count how often they are read."""

    def __init__(self, n: int, size=(32, 32)):
        self.n, self.size, self.read, self.opened = n, size, [], 0

    def __call__(self):
        self.opened += 1
        for i in range(self.n):
            self.read.append(i)
            yield picture(i, self.size)


def numbers(found: list[Image.Image]) -> list[int]:
    return [frame.getpixel((0, 0))[0] // 10 for frame in found]


def test_frames_of_another_video_come_by_number_each_read_once():
    film = Film(9)
    one = Aligned(film)
    assert numbers(one([0, 1, 2])) == [0, 1, 2]
    assert numbers(one([0, 3, 4])) == [0, 3, 4]  # the anchor again
    assert numbers(one([0, 7])) == [0, 7]  # some were there
    assert film.opened == 1 and film.read == list(range(8))
    assert numbers(one([2, 3])) == [2, 3] and film.opened == 2
    with pytest.raises(SfumatoError, match=r"^depth\.mp4 has no frame 9, which the video has"):
        Aligned(Film(9), "depth.mp4")([8, 9])


def test_frames_are_steered_by_their_own_pictures():
    frames = [images.fit(picture(i, (40, 32)), 32, 8) for i in range(4)]
    seen = []
    reads = Reads(
        (Aligned(Film(8, (40, 32))), Aligned(Film(9, (40, 32)))), lambda model, shown: seen.append(shown) or "steered"
    )
    assert reads.given(MODEL, [0, 5, 6, 7], frames) == "steered"
    ((one, other),) = seen
    assert torch.equal(one, other) and one.shape == (4, *frames[0].pixels.shape)
    assert (255 / 10 * one[:, 0, 0, 0]).round().tolist() == [0, 5, 6, 7]
    assert reads.inside(MODEL, frames) is None and reads.marks != Reads((Aligned(Film(8), "a"),)).marks
    with pytest.raises(SfumatoError, match="are 32 x 32 pixels, of another shape than the video's of 40 x 32"):
        Reads((Aligned(Film(8)),), lambda model, shown: model).given(MODEL, [0], frames[:1])
    assert Reads().given(MODEL, [0], frames[:1]) is MODEL


def test_an_inpainting_checkpoint_sees_each_frame_and_one_mask():
    class Model(SimpleNamespace):
        def given(self, change):
            return change(Cond(torch.zeros(4, 1, 1), ("a",) * 4))

        def with_mask(self, cond, image, mask):
            return cond, image, mask

    model, frames = Model(size=32, multiple=8, factor=8), [images.fit(picture(i), 32, 8) for i in range(2)]
    left = torch.zeros(32, 32, dtype=torch.bool)
    left[:, :9] = True
    reads = Reads(mask=Mask(left))
    _, seen, holes = reads.given(model, [3, 4], frames)
    assert torch.equal(seen, torch.stack([f.pixels for f in frames])) and torch.equal(holes, left.expand(2, 32, 32))
    assert torch.equal(reads.inside(model, frames), torch.tensor([True, True, False, False]).expand(4, 4))


def test_a_motion_is_found_part_by_part_as_at_once():
    wide = blur(torch.rand(1, 3, 60, 80, generator=torch.Generator().manual_seed(0)), 2.0) * 4 - 1.5
    frames = torch.cat([Similarity(1.5 * i / 80, 0.0)(wide) for i in range(11)])[:, :, 6:-6, 12:-12].clamp(0, 1)
    whole, parts = flow.found(frames), motion_of(iter(frames))
    assert len(parts) == 11
    for one in fields(Motion):
        assert torch.equal(getattr(parts, one.name), getattr(whole, one.name)), one.name
    large = torch.nn.functional.interpolate(frames[:2], scale_factor=6, mode="nearest")
    assert motion_of(large).forward.shape[1:3] == (128, 149)
    assert len(motion_of(frames[:1])) == 1
    with pytest.raises(SfumatoError, match="there are none"):
        motion_of([])
