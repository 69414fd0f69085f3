"""No setting of any method is other than a number."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest

from sfumato import inversion
from sfumato.core.denoising import denoise
from sfumato.core.settings import Settings, numbers
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct
from sfumato.methods import index
from sfumato.methods.edit import PromptToPrompt

METHODS = [entry.method for entry in index.METHODS if not entry.is_function]
INVERSIONS = [found for name in inversion.__all__ if is_dataclass(found := getattr(inversion, name))]
SET = [*METHODS, *(cls for cls in INVERSIONS if issubclass(cls, inversion.Inversion))]


@pytest.mark.parametrize("cls", SET, ids=lambda cls: cls.__name__)
def test_a_method_takes_no_number_that_is_not_finite(cls):
    assert issubclass(cls, Settings)
    needed = {f.name: None for f in fields(cls) if f.default is f.default_factory}  # both are missing
    for f in fields(cls):
        default: Any = f.default
        if not isinstance(default, float) and not (isinstance(default, tuple) and any(numbers(default))):
            continue
        for bad in (float("nan"), float("inf"), -float("inf")):
            if default == float("inf") == abs(bad):  # as far as one can go
                continue
            value = bad if isinstance(default, float) else (bad, *default[1:])
            with pytest.raises(SfumatoError, match=rf"{f.name} of {cls.__name__} is a finite number, got {bad}"):
                cls(**needed, **{f.name: value})


@pytest.mark.parametrize("cls", SET, ids=lambda cls: cls.__name__)
def test_a_method_takes_no_text_for_several(cls):
    needed = {f.name: None for f in fields(cls) if f.default is f.default_factory}
    for f in (f for f in fields(cls) if isinstance(f.default, tuple)):
        with pytest.raises(
            SfumatoError, match=rf"{f.name} of {cls.__name__} are several, such as \('cube',\), got 'cube'"
        ):
            cls(**needed, **{f.name: "cube"})


def test_infinity_stays_where_it_is_meant():
    from sfumato.methods.control.smoothed_energy import SmoothedEnergy

    assert SmoothedEnergy(sigma=float("inf")).sigma == float("inf")
    with pytest.raises(SfumatoError, match="sigma of SmoothedEnergy is a finite number, got nan"):
        SmoothedEnergy(sigma=float("nan"))


def test_numbers_are_found_in_what_a_setting_holds():
    assert [*numbers({"a": (1.0, [2.0]), "b": 3})] == [1.0, 2.0] and [*numbers("nan")] == []


P2P: Any = PromptToPrompt
DIRECT: Any = Direct
PAINT: Any = denoise


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: P2P(cross=3.0), "cross of PromptToPrompt lies between 0 and 1, got 3.0"),
        (lambda: P2P(cross="a"), "cross of PromptToPrompt is a number, got 'a'"),
        (lambda: P2P(self=True), "self of PromptToPrompt is a number, got True"),
        (lambda: P2P(self_res=1.5), "self_res of PromptToPrompt lies between 0 and 1, got 1.5"),
        (lambda: P2P(words=3), "words of PromptToPrompt is a mapping, got 3"),
        (lambda: P2P(blend=3), "blend of PromptToPrompt is a LocalBlend or None, got 3"),
        (lambda: P2P(padding="much"), "unknown padding 'much'; known: position, end"),
        (lambda: DIRECT(steps=2.5), "steps of Direct is a whole number, got 2.5"),
    ],
)
def test_settings_are_what_their_annotations_say(make, says):
    with pytest.raises(SfumatoError, match=re.escape(says)):
        make()
    P2P(cross=1, self=np.float32(0.5), self_res=16, words={})  # so many steps, and cells


def test_arguments_of_runs_are_what_their_annotations_say(sd):
    for name, wrong in (
        ("views", "x"),
        ("stepper", "ddim"),
        ("noises", 3),
        ("levels", 3),
        ("callback", 3),
        ("mark", 3),
    ):
        with pytest.raises(SfumatoError, match=rf"^{name} is a \w+ or None, got {wrong!r}"):
            PAINT(sd, "a cube", **{name: wrong})
    with pytest.raises(SfumatoError, match="a number of steps is a whole number, got True"):
        PAINT(sd, "a cube", steps=True)
    assert PAINT(sd, "a cube", steps=1, size=64, seed=np.int64(3)).latents.isfinite().all()
