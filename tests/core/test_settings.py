"""No setting of any method is other than a number."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from sfumato import inversion
from sfumato.core.settings import Settings, numbers
from sfumato.errors import SfumatoError
from sfumato.methods import index

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
