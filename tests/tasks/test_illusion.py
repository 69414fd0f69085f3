"""Pictures that read in two ways: views by their words, what each is in the other view, and the way there."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.core.anagrams import CylinderMirror, InnerCircle
from sfumato.core.denoising import denoise
from sfumato.core.views import Looks, Turned
from sfumato.errors import SfumatoError
from sfumato.media import pictures
from sfumato.tasks.illusion import agreed, film, illusion, view_of

VIEWS = {
    "flip": Turned(2, flipped=True),
    "mirror": Turned(flipped=True),
    "turn": Turned(2),
    "turn:90": Turned(1),
    "turn:-90": Turned(-1),
    "circle": InnerCircle(180),
    "circle:33.5": InnerCircle(33.5),
    "cylinder": CylinderMirror(),
}


def image(n: int = 24) -> Tensor:
    return torch.rand(3, n, n, generator=torch.Generator().manual_seed(0))


def values(picture: Any) -> Any:
    return np.asarray(picture, int)


def test_views_have_words():
    assert {word: view_of(word) for word in VIEWS} == VIEWS
    x = image()[None]
    assert torch.equal(view_of("flip").project(x), x.flip(-2))
    for wrong in ("wave", "flip:90", ""):
        with pytest.raises(SfumatoError, match=r"unknown view .* known: flip, mirror, turn, circle, cylinder"):
            view_of(wrong)
    for wrong in ("turn:45", "circle:far", "turn:nan"):
        with pytest.raises(SfumatoError, match="circle by any number of degrees, turn by quarters"):
            view_of(wrong)


@pytest.mark.parametrize("word", VIEWS)
def test_a_film_leads_from_a_picture_to_its_other_view(word):
    view, x = view_of(word), image()
    frames = film(x, view, 9)
    assert {frame.size for frame in frames} == {(24, 24)}
    assert np.array_equal(values(frames[0]), values(pictures.picture(x)))
    seen = view.in_pixels().project(x[None])[0]
    assert abs(values(frames[-1]) - values(pictures.picture(seen))).max() <= 1
    between = [values(frame) for frame in frames[-8:-1]]
    assert all(abs(a - b).max() > 20 for a, b in pairwise(between))


def test_a_turn_s_film_turns_as_its_view_does():
    """Its middle frame is halfway: of half a turn a quarter, of a quarter nearer to both ends than they are."""
    x = image(32)
    halfway = values(film(x, Turned(2), 3)[-2])
    wanted = values(pictures.picture(Turned(1).project(x[None])[0]))
    assert abs(halfway - wanted).max() <= 1


@pytest.mark.parametrize("word", ["turn", "circle:33.5", "cylinder"])
def test_it_is_the_run_of_two_views_with_their_prompts(sd, word):
    view, prompts = view_of(word), ("a red cube", "a blue duck")
    options: dict[str, Any] = {"steps": 2, "size": 64, "guide": 3.0}
    found = illusion(sd, prompts, view, [3, 4], **options)
    fuse, side = agreed(sd, view)
    assert (fuse, side) == (("pixels", "instance") if word == "cylinder" else ("eps", "canvas"))
    wanted = denoise(
        sd, [prompts[0]] * 2, views=Looks((Turned(), view), fuse, side, prompts=prompts), seed=[3, 4], **options
    )
    for i, picture in enumerate(found.painted.pictures):
        assert abs(values(picture) - values(pictures.picture(wanted.images[i]))).max() <= 1
        seen = view.in_pixels().project(torch.from_numpy(values(picture)).permute(2, 0, 1)[None] / 255)[0]
        assert abs(values(found.others[i]) - values(pictures.picture(seen.float()))).max() <= 1
        assert np.array_equal(values(found.film(i)[0]), values(picture))
    other = illusion(sd, prompts, view, [3], fuse="x0" if word == "cylinder" else "pixels", **options)
    differ = abs(values(other.painted.pictures[0]) - values(found.painted.pictures[0])).max()
    assert differ > 1
