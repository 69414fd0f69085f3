"""No setting of any method is other than a number."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from inspect import isclass
from math import isinf
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np
import pytest

from sfumato import inversion
from sfumato.core import guidance
from sfumato.core.denoising import denoise
from sfumato.core.settings import Between, Settings, beyond, check, kinds_of, numbers
from sfumato.errors import SfumatoError
from sfumato.experiments import index as experiments
from sfumato.inversion import Direct
from sfumato.learning.encoding import Pretraining
from sfumato.methods import index
from sfumato.methods.edit import PromptToPrompt
from sfumato.methods.edit.prompt_to_prompt import LocalBlend
from sfumato.reading.reader import Noise
from sfumato.tasks import recipes

METHODS = [entry.method for entry in index.METHODS if not entry.is_function]
LEARNERS = [entry.learner for entry in index.METHODS if not entry.is_function]
INVERSIONS: list[Any] = [found for name in inversion.__all__ if is_dataclass(found := getattr(inversion, name))]
SET: list[Any] = [*METHODS, *(cls for cls in INVERSIONS if issubclass(cls, inversion.Inversion))]
GUIDES: list[Any] = [
    found for found in vars(guidance).values() if isinstance(found, type) and issubclass(found, guidance.Guide)
]
EXPERIMENTS: list[Any] = [entry.experiment for entry in experiments.EXPERIMENTS]
BOUNDED: list[Any] = [
    cls for cls in {*SET, *LEARNERS, *GUIDES, *EXPERIMENTS, Pretraining, LocalBlend, Noise} if is_dataclass(cls)
]
FREE = {
    r"guidances?|guide|(\w+_)?scales?|(particle|inversion)_guidance|terms|high|FrameCFG.last|Contrasted.weight|"
    r"StructuredDiffusion.weight": "below 0 it steers away",
    r"words|reweight|sizes|bias|dustbin": "a factor, a logit or a likeness may be negative",
    r"azimuths|elevations|turn": "angles go round",
    r"move|right|down|shifts?": "ways have a direction",
    r"click|box|UniversalGuidance.steps": "the picture and the run have the bounds",
    r"balance": "a power may be negative",
    r"saliency": "below 0 all of a box is its thing's",
    r"which": "negative ones count from the end",
}
"""Fields with numbers and no bounds, and why."""


def numeric(kind: Any) -> bool:
    return kind in (int, float) or any(map(numeric, get_args(kind)))


def outside(kind: Any) -> Iterator[Any]:
    """Values just outside the bounds in an annotation."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        step = 1 if of[0] is int else 1e-6
        for bounds in (each for each in of[1:] if isinstance(each, Between)):
            yield bounds.low if bounds.above else bounds.low - step
            yield from () if isinf(bounds.high) else (bounds.high if bounds.below else bounds.high + step,)
            yield from (-1,) if bounds.counts else ()
    elif origin in (Union, UnionType):
        yield from (value for each in of for value in outside(each))
    elif isclass(origin) and issubclass(origin, Mapping):
        yield from ({"cube": value} for value in outside(of[1]))
    elif origin is tuple:
        yield from ((value,) * (1 if of[-1] is ... else len(of)) for value in outside(of[0]))


@pytest.mark.parametrize("cls", sorted(BOUNDED, key=str), ids=lambda cls: cls.__name__)
def test_every_number_has_bounds_or_a_reason(cls: Any):
    kinds, needed = kinds_of(cls), {f.name for f in fields(cls) if f.default is f.default_factory}
    assert needed or cls()
    unread = [f.name for f in fields(cls) if kinds[f.name] is Any and re.match(r"int|float|tuple\[|[A-Z]", str(f.type))]
    assert not [name for name in unread if "Callable" not in str(cls.__annotations__.get(name))]
    for f in (f for f in fields(cls) if f.init and numeric(kinds[f.name])):
        what, values = f"{f.name} of {cls.__name__}", [v for v in outside(kinds[f.name]) if beyond(v, kinds[f.name])]
        free = any(re.fullmatch(names, name) for names in FREE for name in (f.name, f"{cls.__name__}.{f.name}"))
        assert values or free, f"{what}: {kinds[f.name]}"
        for value in values:
            with pytest.raises(
                SfumatoError, match=rf"^{what} (is above|is at least|lies between) .*\d, got -?[\d.e-]+$"
            ):
                check(what, value, kinds[f.name]) if needed else cls(**{f.name: value})


def test_what_is_published_lies_within():
    assert sum(len(recipes.presets(entry)) for entry in index.METHODS if not entry.is_function) > 100


@pytest.mark.parametrize(
    ("bounds", "inside", "out", "words"),
    [
        (Between(0, 1), (0, 0.5, 1), (-0.1, 1.1), "lies between 0 and 1"),
        (Between(0, 1, counts=True), (0, 7, 1.0), (-1, 1.1), "lies between 0 and 1"),
        (Between(0, 2, above=True), (0.1, 2), (0, 2.1), "is above 0 and at most 2"),
        (Between(0, 1, below=True), (0, 0.9), (1, -0.1), "is at least 0 and below 1"),
        (Between(0, 1, above=True, below=True), (0.5,), (0, 1), "is above 0 and below 1"),
        (Between(0, above=True), (1e-9, 1e9), (0, -1), "is above 0"),
        (Between(1), (1, 1e9), (0,), "is at least 1"),
    ],
)
def test_bounds_hold_and_are_told(bounds, inside, out, words):
    assert all(map(bounds.hold, inside)) and not any(map(bounds.hold, out)) and str(bounds) == words


@pytest.mark.parametrize("cls", SET, ids=lambda cls: cls.__name__)
def test_a_method_takes_no_number_that_is_not_finite(cls: Any):
    assert Settings in cls.__mro__
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
        (lambda: P2P(words=3), "words of PromptToPrompt is a mapping, each a number, got 3"),
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
