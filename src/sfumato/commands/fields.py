"""A method's fields as options of a command line, and what options a command or a method has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cache, cached_property, partial
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from sfumato.commands import help
from sfumato.commands.oneline import oneline
from sfumato.commands.options import seed_of
from sfumato.errors import SfumatoError, unknown
from sfumato.io.progress import waiting
from sfumato.io.sparing import sparing
from sfumato.media import opening
from sfumato.methods import index
from sfumato.methods.about import about
from sfumato.methods.outline import Outline, constant, outline, unread
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


class Asked(Chain):
    """Methods of a command line, which are imported when somebody looks at them; what their files say of them is known
    before (``sketched``)."""

    def __init__(
        self,
        items: tuple[Any, ...] = (),
        names: tuple[str, ...] = (),
        named: tuple[frozenset[str], ...] = (),
        make: Callable[[], Chain] | None = None,
        sketch: Chain | None = None,
    ) -> None:
        vars(self).update(names=names, sketch=sketch, _make=make or (lambda: Chain(items, names, named)))

    @cached_property
    def _made(self) -> Chain:
        return vars(self)["_make"]()

    @property
    def items(self) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._made.items

    @property
    def named(self) -> tuple[frozenset[str], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._made.named


def sketched(chain: Chain) -> Chain:
    """Methods as their files tell of them, with the values that were asked for; themselves, where they are there."""
    return vars(chain).get("sketch") or chain


def methods(segments: Sequence[Sequence[str]], prog: str, head: bool = False) -> Asked:
    """The methods that were asked for, as ``argv.split`` gives them, or the heads that they learn; tyro says what is
    wrong with options. They are imported when they are looked at."""
    sketches, names = tuple(_sketched(word, options, prog, head) for word, *options in segments), _words(segments)
    make = partial(_methods, segments, prog, head)
    return Asked(names=names, make=make, sketch=None if None in sketches else Chain(sketches, names))


def default(spec: str) -> Asked:
    """A method as it is, or one of its presets, as ``recipes.default`` has it."""
    word, colon, chosen = spec.partition(":")
    entry, sketch = index.find(word), sketch_of(word)
    if sketch and not colon and any(f.default is f.default_factory for f in fields(sketch)):
        raise index.alone(word)
    found = _preset(entry, chosen, sketch, False) if colon else sketch and sketch()
    make = partial(recipes.default, spec)
    return Asked(names=(spec,), make=lambda: Chain((make(),), (spec,)), sketch=found and Chain((found,), (spec,)))


def _words(segments: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(word for word, *_ in segments)


def _methods(segments: Sequence[Sequence[str]], prog: str, head: bool) -> Chain:
    items, named = [], list[frozenset[str]]()
    for word, *options in segments:
        entry, cls = index.find(word), class_of(word, head)
        kind, suiting = (entry.learner if head else entry.method), recipes.presets(entry, head)
        chosen, own = _chosen(options)
        default = {} if chosen is None else {"default": cls(**values(index.preset(entry, chosen, suiting)))}
        with oneline():
            item = tyro.cli(cls, prog=f"{prog} ... {word}", args=own, config=help.CONFIG, **default)
        seed_of(getattr(item, "seed", 0))
        items.append(kind(**values(item)))
        known = {_named(o) for o in own if o.startswith("--")}
        named.append(frozenset(known | (set() if chosen is None else recipes.fields_of(entry, chosen, head))))
    return Chain(tuple(items), _words(segments), tuple(named))


def _sketched(word: str, options: Sequence[str], prog: str, head: bool) -> Any:
    """A method as its file tells of it; what is seen there to be wrong with its options is refused as by its class.
    None where that is not understood."""
    entry, sketch = index.find(word), sketch_of(word, head)
    chosen, own = _chosen(options)
    begun = {} if chosen is None else {"default": _preset(entry, chosen, sketch, head)}
    if sketch is None or None in begun.values():
        return None
    with oneline():
        item = tyro.cli(sketch, prog=f"{prog} ... {word}", args=own, config=help.CONFIG, **begun)
    seed_of(getattr(item, "seed", 0))
    return item


def _preset(entry: index.Entry, name: str, sketch: Any, head: bool) -> Any:
    """What a preset is by its file, or by what suits a model; None where that is not understood."""
    if name not in (known := recipes.preset_names(entry, head)):
        raise unknown(f"preset of {entry.word}", name, known or ("none",))
    if sketch is None:
        return None
    own = head and bool(entry.head)
    found = constant(f"methods.{entry.home.partition(':')[0]}:{name.upper().replace('-', '_')}")
    if not own and isinstance(found, Outline):
        return sketch(**values(found))
    if name == recipes.DEFAULTS:
        return sketch()
    rows = (row for row in recipes.RECIPES.values() if (row.word, row.preset, row.head) == (entry.word, name, own))
    return next((sketch(**row.settings) for row in rows), None)


def _chosen(options: Sequence[str]) -> tuple[str | None, list[str]]:
    """The preset among a method's options, if there is one, and the others."""
    presets = [o.removeprefix("--preset=") for o in options if o.startswith("--preset=")]
    return presets[-1] if presets else None, [o for o in options if not o.startswith("--preset=")]


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
    sketch = outline(f"methods.{entry.head if head and entry.head else entry.home}")
    return sketch and spoken(_made(word, sketch))


def as_written(item: Any) -> Any:
    """The class of a method that is there, as a command line writes it."""
    return type(item) if isinstance(item, Outline) else spoken(type(item))


def _made(word: str, cls: Any) -> Any:
    if any(
        f.default is f.default_factory and "Callable" in str(f.metadata.get("kind", f.type)) for f in fields(cls)
    ):  # both are missing
        raise SfumatoError(f"{word} takes a function, which a command line cannot give; use it from Python")
    return cls


def made(kind: Any, sketch: Any) -> Any:
    """What an outline with values is an outline of."""
    known = {f.name: f.type for f in fields(sketch)}
    given = {k: v for k, v in values(sketch).items() if isinstance(v, partial) or get_args(known[k])[:1] != (Any,)}
    return kind(**{name: value() if isinstance(value, partial) else value for name, value in given.items()})


@cache
def spoken(cls: Any) -> Any:
    """The class with its fields as a command line writes them: words with commas, files; the others are hidden.

    Values of an outline that take torch are looked at, and read when they are called.
    """
    hints, out = get_type_hints(cls, include_extras=True), []
    for f in fields(cls):
        hint = f.metadata.get("kind", hints[f.name])
        inside = get_args(hint)
        one = next((t for t in inside if t is not type(None)), hint) if type(None) in inside else hint
        hidden = f.metadata.get("command") is False
        spec: Any
        read: tuple[Any, Any] = (tyro.conf.Fixed, None) if hidden else _spelling(one)
        spec, look = read
        if issubclass(cls, Outline) and (look or unread(hint)):
            hint, spec = Any, spec if look is None else replace(spec, instance_from_str=partial(_later, spec, look))
        marks = [each for each in (spec, f.metadata.get("help") and tyro.conf.arg(help=f.metadata["help"])) if each]
        if marks:
            kind = Annotated[(hint, *marks)]  # pyright: ignore[reportInvalidTypeForm]
            out.append((f.name, kind, field(default=f.default, default_factory=f.default_factory, metadata=f.metadata)))
    return make_dataclass(cls.__name__, out, bases=(cls,), frozen=True) if out else cls


def _later(spec: Any, look: Callable[[str], Any], args: list[str]) -> Callable[[], Any]:
    """A value that is looked at now, and read when it is called."""
    look(*args)
    return partial(spec.instance_from_str, args)


def _spelling(kind: Any) -> tuple[Any, Callable[[str], Any] | None]:
    """How a command line writes a kind, if not as tyro does, and what looks at it, if reading it takes torch."""
    name, of = getattr(kind, "__name__", ""), get_args(kind)
    if get_origin(kind) is tuple and of == (str, ...):
        return _spec("WORD,WORD", lambda text: tuple(_listed(text)), ",".join), None
    if _is_mapping(kind) and of[1:]:
        if getattr(of[1], "__name__", "") == "Distillation":
            return _spec("WORD,WORD", _distillations, ",".join), _distilling
        if _is_mapping(of[1]):
            return _spec("WORD=PNG,...", partial(_pairs, of=_drawn), ",".join), partial(_pairs, of=opening.checked)
        return _spec("WORD=VALUE,...", partial(_pairs, of=of[1]), _paired), None
    if name == "Layout":
        return _spec("FILE", kind.read, lambda v: ",".join(v.phrases)), None
    if name in ("Mask", "Ramp", "Times"):
        spec = _spec({"Mask": "PNG", "Ramp": "RAMP", "Times": "RAMP[,RAMP]"}[name], kind.read, str)
        return spec, opening.checked if name == "Mask" else None
    if name == "LocalBlend":
        return tyro.constructors.PrimitiveConstructorSpec(
            (2, 3, 4),
            "SOURCE TARGET [THRESHOLD [RES]]",
            partial(_blended, kind),
            lambda value: True,
            lambda v: [v.source, v.target, str(v.threshold), str(v.res)] if v else ["none"],
        ), None
    return None, None


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
    return {spec: recipes.default(spec) for spec in _distilling(text)}


def _distilling(text: str) -> list[str]:
    """Methods that distil, by ``word`` or ``word:preset``."""
    specs, known = _listed(text), index.words(index.DISTILLING, aliases=True)
    if not specs or len(set(specs)) < len(specs):
        raise SfumatoError(f"methods are different words with commas, got {text!r}; known: {', '.join(known)}")
    for word in (spec.partition(":")[0] for spec in specs):
        if word not in known:
            raise unknown("method that distils", word, known)
    for spec in specs:
        default(spec)
    return specs


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
