"""A dataclass's fields as options of a command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, fields, make_dataclass, replace
from functools import cache, partial
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro


@cache
def spoken(cls: Any) -> Any:
    """The class with its fields as a command line writes them: words with commas, files; the others are hidden."""
    from sfumato.distill.annealing import Ramp, Times
    from sfumato.methods.edit.prompt_to_prompt import LocalBlend
    from sfumato.prompts.layout import Layout, Mask

    def blended(args: list[str]) -> LocalBlend:
        blend = LocalBlend(args[0], args[1])
        return replace(blend, threshold=float(args[2])) if args[2:] else blend

    blend = tyro.constructors.PrimitiveConstructorSpec(
        (2, 3),
        "SOURCE TARGET [THRESHOLD]",
        blended,
        lambda value: True,
        lambda value: [value.source, value.target, str(value.threshold)] if value else ["none"],
    )
    hints, out = get_type_hints(cls), []
    for f in fields(cls):
        hint, inside = hints[f.name], get_args(hints[f.name])
        one = next((t for t in inside if t is not type(None)), hint) if type(None) in inside else hint
        if f.metadata.get("command") is False:
            said: Any = tyro.conf.Fixed
        elif get_origin(one) is tuple and get_args(one) == (str, ...):
            said = _spec("WORD,WORD", lambda text: tuple(_listed(text)), ",".join)
        elif isinstance(get_origin(one), type) and issubclass(get_origin(one), Mapping):
            said = _spec("WORD=VALUE,...", partial(_pairs, of=get_args(one)[1]), _paired)
        elif one is Layout:
            said = _spec("FILE", Layout.read, lambda v: ",".join(v.phrases))
        elif one is Mask:
            said = _spec("PNG", Mask.read, str)
        elif one is Ramp or one is Times:
            said = _spec("RAMP" if one is Ramp else "RAMP[,RAMP]", one.read, str)
        elif one is LocalBlend:
            said = blend
        else:
            continue
        out.append((f.name, Annotated[hint, said], field(default=f.default, default_factory=f.default_factory)))
    return make_dataclass(cls.__name__, out, bases=(cls,), frozen=True) if out else cls


def _spec(metavar: str, read: Callable[[str], Any], write: Callable[[Any], str]) -> Any:
    return tyro.constructors.PrimitiveConstructorSpec(
        1, metavar, lambda args: read(args[0]), lambda value: True, lambda v: [write(v) if v else "none"]
    )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _paired(values: Mapping[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in values.items())


def _pairs(text: str, of: type) -> dict[str, Any]:
    out = {}
    for part in _listed(text):
        word, equals, value = part.rpartition("=")
        if not equals:
            raise ValueError(f"expected WORD=VALUE, got {part!r}")
        out[word] = of(value)
    return out
