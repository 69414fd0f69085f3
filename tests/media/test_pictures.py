"""Numbers become pictures where they are finite."""

from __future__ import annotations

import pytest
import torch
from matplotlib.figure import Figure

from sfumato.errors import SfumatoError
from sfumato.media import overlays, pictures, plots
from sfumato.metrics.image import psnr

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_not_finite_is_no_picture_no_overlay_and_no_measure(bad):
    broken = torch.full((3, 4, 4), 0.5)
    broken[1, 2, 3] = bad
    shown = pictures.picture(torch.full((3, 4, 4), 0.5))
    for make in (
        lambda: pictures.picture(broken),
        lambda: pictures.sheet(broken[None], 1),
        lambda: overlays.heatmap(shown, broken[1]),
        lambda: overlays.sheet(shown, [("cube", broken[1])]),
        lambda: plots.image(Figure().subplots(), broken),
        lambda: psnr(broken[None], torch.zeros(1, 3, 4, 4)),
        lambda: psnr(torch.zeros(1, 3, 4, 4), broken[None], torch.ones(1, 4, 4, dtype=torch.bool)),
    ):
        with pytest.raises(SfumatoError, match="became not finite"):
            make()


def test_pictures_beyond_their_range_are_clipped_as_ever():
    assert pictures.picture(torch.full((3, 1, 1), 1.7)).getpixel((0, 0)) == (255, 255, 255)
