"""What a method requires of a run is refused before the first step, and what it does not is not."""

from __future__ import annotations

from typing import Any, cast

import pytest

from sfumato.core.method import Method, Phases, Requires, Run
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError


def run(streams=("source", "target"), conditions=("uncond", "cond"), images: int = 1, windows: int = 1) -> Run:
    prompts = {s: ("a cube",) * images for s in streams}
    return Run(cast("Any", None), prompts, Rows(streams, conditions, images, windows), 4, (8, 8))


@pytest.mark.parametrize(
    ("requires", "bad", "why"),
    [
        (
            Requires(source=True),
            {"streams": ("main",)},
            "X needs two prompts, of a picture and of its edit: sfumato edit",
        ),
        (Requires(uncond=True), {"conditions": ("cond",)}, "X takes a guidance with an empty prompt"),
        (Requires(windows=False), {"windows": 3}, "X sees whole images, and this canvas is seen in windows"),
        (Requires(batch=False), {"images": 2}, "X edits one image a run"),
        (Requires(batch=False), {"images": 2, "windows": 3}, "X edits one image a run"),
        (Requires("Y", source=True), {"streams": ("main",)}, "Y needs two prompts"),
    ],
)
def test_each_requirement_is_refused_alone(requires, bad, why):
    with pytest.raises(SfumatoError, match=why):
        requires.check(run(**bad), "X")
    Requires().check(run(**bad), "X")
    requires.check(run(), "X")
    if requires == Requires(batch=False):
        requires.check(run(windows=3), "X")  # three windows of one image


def test_a_run_asks_before_the_method_starts(tiny):
    from sfumato.core.denoising import denoise

    class Picky(Method):
        requires = Requires(source=True)

        def start(self, run: Run) -> Phases:
            raise AssertionError("started")

    with pytest.raises(SfumatoError, match="Picky needs two prompts"):
        denoise(tiny, "a red cube on grass", methods=[Picky()], steps=1)


@pytest.fixture(scope="module")
def tiny():
    from families import FAMILIES

    from sfumato.backbones.load import family

    return family("sd", FAMILIES["sd"]())
