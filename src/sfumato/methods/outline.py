"""What our files say, without importing them: what a command line takes, and what is refused, is known before torch is.

An outline is a class of settings with the fields of another one, and refuses what that one does when it is made. Kinds
that are of no standard module are ``Unread`` in it. There is none where a file is written as is not understood here;
then the class itself has to be asked. ``look`` runs a function as far as it goes with what is known.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import MISSING, Field, field, make_dataclass
from functools import cache, partial, reduce
from importlib import import_module
from typing import Any, ClassVar, Protocol, get_args

from sfumato.core.described import behind
from sfumato.core.settings import Settings
from sfumato.errors import SfumatoError
from sfumato.methods.about import file_of, source_of
from sfumato.methods.index import Entry

_OURS = "errors core.settings experiments.experiment io.files learning.annealing media.opening methods.index"
_IMPORTED = {
    *["collections.abc", "dataclasses", "math", "os.path", "pathlib", "re", "typing", "warnings"],
    *(f"sfumato.{name}" for name in (*_OURS.split(), "prompts.layout", "tasks.recipes")),
}
"""Modules that cost nothing: their names are what they are."""


class _Unsure(BaseException):
    """Here a file is not understood; of no kind that is caught in passing."""


class _Unknown(type):
    """Of what is not known nothing can be said."""

    def __instancecheck__(cls, instance: Any) -> bool:
        if isinstance(instance, Outline) and cls.of and Protocol not in ancestors(cls.of, cls.__name__):
            return cls.__name__ in instance.kinds
        raise _Unsure

    def __call__(cls, *args: Any, **options: Any) -> Any:
        raise _Unsure

    def __getattr__(cls, name: str) -> Any:
        """A function of the class alone, not of its instances."""
        if name.startswith("__"):
            raise AttributeError
        body = getattr(_names(home).get(cls.__name__), "body", ()) if (home := cls.of) else ()
        for each in body:
            if isinstance(each, ast.FunctionDef) and each.name == name and each.decorator_list:
                return partial(_function(cls.of, each), cls)
        raise _Unsure

    __iter__ = __len__ = __contains__ = __call__


class Unread(metaclass=_Unknown):
    """A kind of which the name alone is known."""

    __module__, of = "", ""

    def __class_getitem__(cls, of: Any) -> type:
        return cls


def _unread(name: str, module: str = "") -> type:
    return _Unknown(name, (Unread,), {"__module__": "", "of": module})


class Outline:
    """What all outlines are."""

    of: ClassVar[str] = ""
    """The module of the class."""
    kinds: ClassVar[frozenset[str]] = frozenset()
    """Its own name and those of the classes that it derives from."""


@cache
def outline(home: str) -> Any:
    """Of a method's home, such as ``methods.edit.masactrl:MasaCtrl``; None for one that cannot be read."""
    module, _, name = home.partition(":")
    try:
        return _outline(f"sfumato.{module}", name)
    except (_Unsure, SyntaxError, OSError):
        return None


@cache
def _outline(module: str, name: str) -> Any:
    base = next((each for each in ancestors(module, name) if isinstance(each, type)), Settings)
    own, checks = [(k, kind, f) for k, (kind, f) in _fields(module, name).items()], [*_checks(module, name)]

    def look(self: Any) -> None:
        base.__post_init__(self)
        for check in checks:
            try:
                check(self)
            except SfumatoError:
                raise
            except (_Unsure, Exception):  # what it looks at is not known here
                return

    inside = dict(_constants(module, name)) | {"__post_init__": look}
    cls: Any = make_dataclass(name, own, bases=(Outline, base), namespace=inside, frozen=True)
    cls.__abstractmethods__ = frozenset()
    cls.of, cls.kinds = module, frozenset({name, *(each for each in ancestors(module, name) if isinstance(each, str))})
    return cls


def _lineage(module: str, name: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """Modules and texts of a class of ours and of those that it derives from, the first ones first."""
    node = _names(module).get(name)
    if isinstance(node, tuple) and node[0].startswith("sfumato.") and node[0] not in _IMPORTED:
        yield from _lineage(*node)
    elif isinstance(node, ast.ClassDef):
        for base in node.bases[::-1]:
            yield from _lineage(module, base.id) if isinstance(base, ast.Name) else ()
        yield module, node


def _constants(module: str, name: str) -> Iterator[tuple[str, Any]]:
    """What is the same of all instances of a class."""
    for of, node in _lineage(module, name):
        for each in node.body:
            if isinstance(each, ast.AnnAssign) and "ClassVar" in ast.unparse(each.annotation) and each.value:
                with suppress(_Unsure):
                    yield ast.unparse(each.target), _value(of, each.value)


def _checks(module: str, name: str) -> Iterator[Callable[[Any], None]]:
    """What looks at an instance when it is made."""
    for of, node in _lineage(module, name):
        for each in node.body:
            if isinstance(each, ast.FunctionDef) and each.name == "__post_init__":
                body = [line for line in each.body if "__post_init__" not in ast.unparse(line)] or [ast.Pass()]
                yield _function(of, ast.FunctionDef(each.name, each.args, body, [], lineno=1))


def look(home: str, *args: Any, **options: Any) -> Any:
    """Call a function such as ``media.meshes:read_mesh`` by its file, which is not imported: whatever it refuses before
    it comes to what is not known here is refused now, by the same ``SfumatoError``. What it gives, or None."""
    module, _, name = home.partition(":")
    try:
        name, *of = name.split(".")
        return reduce(getattr, of, _named(f"sfumato.{module}", name, called=not of))(*args, **options)
    except SfumatoError:
        raise
    except (_Unsure, Exception):
        return None


class _Imports(ast.NodeTransformer):
    """Imports inside of a function: names of ours as they are known, and where another library is needed it ends."""

    def __init__(self, called: Collection[str]) -> None:
        self.called, self.ours = called, dict[str, Any]()

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> ast.AST:
        of = str(node.module) if isinstance(node, ast.ImportFrom) else node.names[0].name
        if of in _IMPORTED:
            return node
        if of == "safetensors":
            self.ours |= {"safe_open": _Header, "SafetensorError": import_module(of).SafetensorError}
        elif of.startswith("sfumato."):
            for each in node.names:
                own = each.asname or each.name
                self.ours[own] = _imported(of, each.name, own in self.called)
        else:
            return ast.copy_location(ast.parse(f"{Unread.__name__}()").body[0], node)
        return ast.copy_location(ast.Pass(), node)

    visit_ImportFrom = visit_Import


class _Header:
    """A safetensors file, of which no more is read."""

    def __init__(self, file: Any, framework: str) -> None:
        self.metadata = import_module("safetensors").safe_open(file, "np").metadata

    def __enter__(self) -> _Header:
        return self

    def __exit__(self, *_: object) -> None: ...

    def keys(self) -> Any:
        raise _Unsure


@cache
def _function(module: str, node: ast.FunctionDef) -> Callable[..., Any]:
    """A function of a file; what it needs and is not known stops it."""
    imports = _Imports(_called(node))
    copy = ast.parse(ast.unparse(ast.FunctionDef(node.name, node.args, node.body, [], lineno=1)))
    (plain,) = imports.visit(copy).body
    names = {n.id for n in ast.walk(plain) if isinstance(n, ast.Name) and not hasattr(builtins, n.id)}
    known = {name: _unread(name) for name in names} | _known(module, plain) | imports.ours | {Unread.__name__: Unread}
    for name, value in known.items():  # what is not made here is asked for
        if isinstance(value, type) and issubclass(value, Outline) and name not in imports.called:
            known[name] = _unread(value.__name__, value.of)
    code = compile(ast.Module([plain], []), module, "exec", annotations.compiler_flag, dont_inherit=True)
    exec(code, known)
    return known[node.name]


def constant(home: str) -> Any:
    """Of a file, such as ``tasks.lift:LOSSES``, with outlines for methods; None where it is not understood."""
    module, _, name = home.partition(":")
    try:
        return _named(f"sfumato.{module}", name)
    except _Unsure:
        return None


def derives(entry: Entry, name: str, head: bool = False) -> bool:
    """Does a method, or the head that it learns, derive from a class of that name?"""
    module, _, own = (entry.head if head and entry.head else entry.home).partition(":")
    return name in ancestors(f"sfumato.methods.{module}", own)


def ancestors(module: str, name: str) -> Iterator[Any]:
    """What a class derives from: words of classes of ours, and those of modules that cost nothing."""
    node = _names(module).get(name)
    if isinstance(node, tuple) and node[0] in _IMPORTED:
        yield getattr(import_module(node[0]), node[1])
    elif isinstance(node, tuple) and node[0].startswith("sfumato."):
        yield from ancestors(*node)
    elif isinstance(node, ast.ClassDef):
        for base in node.bases:
            if isinstance(base, ast.Name):
                yield base.id
                yield from ancestors(module, base.id)


def _fields(module: str, name: str) -> dict[str, tuple[Any, Any]]:
    """Annotations and fields of a dataclass, in their order."""
    out: dict[str, tuple[Any, Any]] = {}
    for of, node in _lineage(module, name):
        texts = behind(node.body)
        for each in node.body if _is_dataclass(node) else ():
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                kind, own = _value(of, each.annotation), each.target.id
                if "ClassVar" not in str(kind):
                    out[own] = Unread if unread(kind) else kind, _field(of, each.value, kind, texts.get(own, ""))
    return out


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(each) for each in node.decorator_list)


def _field(module: str, default: ast.expr | None, kind: Any, text: str) -> Any:
    given: dict[str, Any] = {} if default is None else {"default": default}
    if isinstance(default, ast.Call) and ast.unparse(default.func) == "field":
        given = {str(each.arg): each.value for each in default.keywords if each.arg not in ("repr", "compare")}
    if not given.keys() <= {"default", "default_factory", "metadata"}:
        raise _Unsure
    metadata = _value(module, given.pop("metadata")) if "metadata" in given else {}
    if unread(kind):  # no value is made, and any will do
        given, metadata = dict.fromkeys(given and ["default"]), {**metadata, "kind": kind}
    values: dict[str, Any] = {k: v and _value(module, v) for k, v in given.items()}
    if isinstance(made := values.get("default"), Field):  # by a function that makes fields
        values, metadata = {"default": made.default}, made.metadata
    return field(**values, metadata={**metadata, "help": text})


def unread(kind: Any) -> bool:
    """Is it of a kind, or has one in it, of which the name alone is known?"""
    return (isinstance(kind, type) and issubclass(kind, Unread)) or any(map(unread, get_args(kind)))


def _value(module: str, node: ast.expr) -> Any:
    """What an expression of a file is."""
    try:
        return eval(compile(ast.Expression(node), module, "eval"), _known(module, node))
    except Exception:
        raise _Unsure from None


def _known(module: str, node: ast.AST) -> dict[str, Any]:
    """What the names in a part of a file are, as far as that is known."""
    called = _called(node)
    out: dict[str, Any] = {}
    for name in {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}:
        with suppress(_Unsure):
            out[name] = _named(module, name, name in called)
    return out


def _called(node: ast.AST) -> set[str]:
    return {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}


class _Module:
    """A module of ours, of which no more is read than what is looked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return _named(self._name, name, called=True)


@cache
def _named(module: str, name: str, called: bool = False) -> Any:
    """What a name of a module is; of a class that is ``called``, its outline."""
    node = _names(module).get(name, MISSING)
    if isinstance(node, tuple):
        of, own = node
        if called and own and of.startswith("sfumato.") and of not in _IMPORTED:  # its file is read when it is called
            return lambda *args, **options: _imported(of, own, True)(*args, **options)
        return _imported(of, own, called) if own or of in _IMPORTED else _unread(name)
    if isinstance(node, ast.ClassDef):
        plain = called or any(isinstance(base, ast.Name) and base.id == "Settings" for base in node.bases)
        return _outline(module, name) if plain and _is_dataclass(node) else _unread(name, module)
    if isinstance(node, ast.FunctionDef) and called and not module.startswith("sfumato.io."):
        return lambda *args, **options: _function(module, node)(*args, **options)
    if isinstance(node, ast.expr):
        return _value(module, node)
    if name == "__file__":
        return str(file_of(module.removeprefix("sfumato.")))
    if node is MISSING and hasattr(builtins, name):
        return getattr(builtins, name)
    raise _Unsure


def _imported(of: str, own: str, called: bool) -> Any:
    """What is imported of a module, or itself."""
    if of in _IMPORTED:
        return getattr(import_module(of), own) if own else import_module(of)
    if not of.startswith("sfumato."):
        return _unread(own)
    if own in _names(of):
        return _named(of, own, called)
    return import_module(inner) if (inner := f"{of}.{own}") in _IMPORTED else _Module(inner)


@cache
def _names(module: str) -> dict[str, Any]:
    """What is defined at the top of a module of ours: classes, values, and imports as module and name."""
    out: dict[str, Any] = {}
    todo = list(ast.parse(source_of(module.removeprefix("sfumato."))).body)
    for node in todo:
        if isinstance(node, ast.If):
            todo += node.body
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            out[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            out |= {each.asname or each.name: (str(node.module), each.name) for each in node.names}
        elif isinstance(node, ast.Import):
            out |= {each.asname or each.name: (each.name, "") for each in node.names}
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            out[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            out[node.target.id] = node.value
    return out
