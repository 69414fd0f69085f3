"""A method's fields as options of a command line, and what options a command or a method has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cache, partial
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from sfumato.commands import help
from sfumato.commands.options import seed_of
from sfumato.errors import SettingError, SfumatoError, unknown
from sfumato.io.progress import waiting
from sfumato.io.sparing import sparing
from sfumato.methods import index
from sfumato.methods.about import about
from sfumato.methods.outline import outline
from sfumato.tasks import recipes
from sfumato.tasks.chain import Chain, values


@dataclass(frozen=True)
class Grammar:
    """What a command or a method understands on a command line."""

    options: Mapping[str, int | None]
    """How many values each takes; None for as many as follow."""
    positionals: tuple[int, float] = (0, 0)
    """How many it takes, at least and at most."""
    places: tuple[str, ...] = ()
    """What these are called."""
    pictures: tuple[str | int, ...] = ()
    """Options, and places among the positionals, of one picture file each."""
    many: bool = False
    """Are its positionals any number of pictures, and folders of them?"""
    required: tuple[str, ...] = ()
    """Options without which it does not run."""
    needs: tuple[str, ...] = ()
    """Further ones, unless pictures are listed in a file, and what they mean."""


@cache
def grammar(f: Callable[..., Any], **more: int) -> Grammar:
    """Of a function's parameters or a class's fields, and ``more`` options by their names."""
    options: dict[str, int | None] = {f"--{name}": n for name, n in more.items()}
    least, most, places, pictures, required = 0, 0.0, list[str](), list[str | int](), list[str]()
    many = False
    for action in help.parser(f)._actions:
        n = action.nargs if isinstance(action.nargs, int) else None
        options |= dict.fromkeys(action.option_strings, n)
        if n == 1 and str(action.metavar).endswith("IMAGE"):
            pictures += action.option_strings or [int(least)]
        if action.option_strings:
            required += action.option_strings[:1] if action.required else []
        else:
            least, most = least + (n or 1), most + (math.inf if n is None else n)
            places += [str(action.metavar)]
            many = many or (n is None and action.metavar == "IMAGE")
    needs = tuple(words for usage in help.usages(f) for words in usage.needs)
    return Grammar(options, (least, most), tuple(places), tuple(pictures), many, tuple(required), needs)


def of_method(word: str, head: bool = False) -> Grammar:
    """Of a method by its word, or of the head that it learns. ``SfumatoError`` for one that no command line makes."""
    return grammar(sketch_of(word, head) or class_of(word, head), preset=1)


def help_of(word: str, prog: str, head: bool = False) -> str:
    """What ``--help`` behind a method's word tells."""
    entry = index.find(word)
    text = f"{about(entry).summary}\n\nMore of it: sfumato methods {word}"
    row, presets = recipes.usual(entry, head), ", ".join(recipes.presets(entry, head))
    default = f" [default: {row.preset} on {row.model}, else {recipes.DEFAULTS}]" if row else ""
    presets = f"One of: {presets}{default}." if presets else ""
    return help.method(class_of(word, head), f"{prog} ... {word}", text, presets)


def methods(segments: Sequence[Sequence[str]], prog: str, head: bool = False) -> Chain:
    """The methods that were asked for, as ``argv.split`` gives them, or the heads that they learn; tyro says what is
    wrong with options."""
    for word, *options in segments:
        _check(word, options, prog, head)
    items, named = [], list[frozenset[str]]()
    for word, *options in segments:
        entry, cls = index.find(word), class_of(word, head)
        kind, suiting = (entry.learner if head else entry.method), recipes.presets(entry, head)
        presets = [o.removeprefix("--preset=") for o in options if o.startswith("--preset=")]
        default = {"default": cls(**values(index.preset(entry, presets[-1], suiting)))} if presets else {}
        item = parsed(cls, word, options, prog, **default)
        seed_of(getattr(item, "seed", 0))
        items.append(kind(**values(item)))
        own = {_named(o) for o in options if o.startswith("--")}
        named.append(frozenset(own | (recipes.fields_of(entry, presets[-1], head) if presets else set())))
    return Chain(tuple(items), tuple(word for word, *_ in segments), tuple(named))


def _check(word: str, options: Sequence[str], prog: str, head: bool) -> None:
    """Refuse what is seen to be wrong with a method's options before it is imported, as it is refused then."""
    entry, sketch = index.find(word), sketch_of(word, head)
    presets = [o.removeprefix("--preset=") for o in options if o.startswith("--preset=")]
    if presets and presets[-1] not in (known := recipes.preset_names(entry, head)):
        raise unknown(f"preset of {entry.word}", presets[-1], known or ("none",))
    if sketch and not (presets and any(f.default is f.default_factory for f in fields(sketch))):
        seed_of(getattr(parsed(sketch, word, options, prog), "seed", 0))


def parsed(cls: Any, word: str, options: Sequence[str], prog: str, **default: Any) -> Any:
    """A method's own options, made what they say; ``SfumatoError`` calls what is wrong with one by its name there."""
    own = [o for o in options if not o.startswith("--preset=")]
    try:
        return tyro.cli(cls, prog=f"{prog} ... {word}", args=own, config=help.CONFIG, **default)
    except SettingError as e:
        field = next((f.name for f in fields(cls) if e.owner in str(f.type)), "") if e.owner != cls.__name__ else ""
        raise e.typed(word, field) from None


def _named(option: str) -> str:
    """The field that an option is of."""
    return option.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")


def class_of(word: str, head: bool = False) -> Any:
    """What a command line makes of a method's word, or of the head that it learns."""
    entry = index.find(word)
    with waiting("starting"), sparing():
        return spoken(_made(word, entry.learner if head else entry.method))


def sketch_of(word: str, head: bool = False) -> Any:
    """``class_of`` as far as the method's file tells of it, which is not imported; None where it cannot be read."""
    entry = index.find(word)
    sketch = outline(entry.head if head and entry.head else entry.home)
    return sketch and spoken(_made(word, sketch), read=False)


def _made(word: str, cls: Any) -> Any:
    if any(f.default is f.default_factory and "Callable" in str(f.type) for f in fields(cls)):  # both are missing
        raise SfumatoError(f"{word} takes a function, which a command line cannot give; use it from Python")
    return cls


@cache
def spoken(cls: Any, read: bool = True) -> Any:
    """The class with its fields as a command line writes them: words with commas, files; the others are hidden.

    Unless it should ``read`` them, values of kinds that take torch are taken as they are.
    """
    hints, out = get_type_hints(cls, include_extras=True), []
    for f in fields(cls):
        hint, inside = hints[f.name], get_args(hints[f.name])
        one = next((t for t in inside if t is not type(None)), hint) if type(None) in inside else hint
        hidden = f.metadata.get("command") is False
        spec: Any
        spec, light = (tyro.conf.Fixed, False) if hidden else _spelling(one)
        if not (light or read):
            hint, spec = Any, spec if hidden else replace(spec, instance_from_str=lambda args: None)
        marks = [each for each in (spec, f.metadata.get("help") and tyro.conf.arg(help=f.metadata["help"])) if each]
        if marks:
            kind = Annotated[(hint, *marks)]  # pyright: ignore[reportInvalidTypeForm]
            out.append((f.name, kind, field(default=f.default, default_factory=f.default_factory)))
    return make_dataclass(cls.__name__, out, bases=(cls,), frozen=True) if out else cls


def _spelling(kind: Any) -> tuple[Any, bool]:
    """How a command line writes a kind, if not as tyro does, and whether it is read without torch."""
    name, of = getattr(kind, "__name__", ""), get_args(kind)
    if get_origin(kind) is tuple and of == (str, ...):
        return _spec("WORD,WORD", lambda text: tuple(_listed(text)), ",".join), True
    if _is_mapping(kind) and of[1:]:
        if getattr(of[1], "__name__", "") == "Distillation":
            return _spec("WORD,WORD", _distillations, ",".join), False
        if _is_mapping(of[1]):
            return _spec("WORD=PNG,...", partial(_pairs, of=_drawn), ",".join), False
        return _spec("WORD=VALUE,...", partial(_pairs, of=of[1]), _paired), True
    if name == "Layout":
        return _spec("FILE", kind.read, lambda v: ",".join(v.phrases)), False
    if name in ("Mask", "Ramp", "Times"):
        return _spec({"Mask": "PNG", "Ramp": "RAMP", "Times": "RAMP[,RAMP]"}[name], kind.read, str), False
    if name == "LocalBlend":
        return tyro.constructors.PrimitiveConstructorSpec(
            (2, 3, 4),
            "SOURCE TARGET [THRESHOLD [RES]]",
            partial(_blended, kind),
            lambda value: True,
            lambda v: [v.source, v.target, str(v.threshold), str(v.res)] if v else ["none"],
        ), False
    return None, True


def _blended(kind: Any, args: list[str]) -> Any:
    if len(args) < 2:
        raise ValueError("SOURCE and TARGET are two")
    return kind(args[0], args[1], **dict(zip(("threshold", "res"), map(_number, args[2:]), strict=False)))


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _drawn(file: str) -> Any:
    from sfumato.methods.control.given_attention import drawn

    return drawn(file)


def _number(text: str) -> int | float:
    """Whole where it is written so: a number of cells, not a part of them."""
    return int(text) if text.isdigit() else float(text)


def _spec(metavar: str, read: Callable[[str], Any], write: Callable[[Any], str]) -> Any:
    return tyro.constructors.PrimitiveConstructorSpec(
        1, metavar, lambda args: read(args[0]), lambda value: True, lambda v: [write(v) if v else "none"]
    )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _distillations(text: str) -> dict[str, Any]:
    """Methods that distil, by ``word`` or ``word:preset``."""
    specs, known = _listed(text), index.words(index.DISTILLING, aliases=True)
    if not specs or len(set(specs)) < len(specs):
        raise SfumatoError(f"methods are different words with commas, got {text!r}; known: {', '.join(known)}")
    for word in (spec.partition(":")[0] for spec in specs):
        if word not in known:
            raise unknown("method that distils", word, known)
    return {spec: recipes.default(spec) for spec in specs}


def _paired(values: Mapping[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in values.items())


def _pairs(text: str, of: Callable[[str], Any]) -> dict[str, Any]:
    out = {}
    for part in _listed(text):
        word, equals, value = part.rpartition("=")
        if not equals:
            raise ValueError(f"expected WORD=VALUE, got {part!r}")
        out[word] = of(value)
    return out
