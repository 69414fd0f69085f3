"""A method's fields as its file has them, without importing it: what a command line takes is known before torch is.

An outline is a class of settings with the fields of another one. Kinds that are of no standard module are ``Unread``
in it. There is none where a file is written as is not understood here; then the class itself has to be asked.
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import MISSING, field, make_dataclass
from functools import cache
from importlib import import_module
from typing import Any, get_args

from sfumato.core.described import behind
from sfumato.core.settings import Settings
from sfumato.methods.about import source_of

_IMPORTED = {"typing", "collections.abc", "pathlib", "math", "dataclasses", "sfumato.core.settings"}
"""Modules that cost nothing: their names are what they are."""


class Unread:
    """A kind of which the name alone is known."""

    read: Any = None

    def __class_getitem__(cls, of: Any) -> type:
        return cls


class _Unsure(Exception):
    """Here a file is not understood."""


@cache
def outline(home: str) -> Any:
    """Of a method's home, such as ``edit.masactrl:MasaCtrl``; None for one that cannot be read."""
    module, _, name = home.partition(":")
    try:
        found = _fields(f"sfumato.methods.{module}", name)
    except (_Unsure, SyntaxError, OSError):
        return None
    return make_dataclass(name, [(k, kind, f) for k, (kind, f) in found.items()], bases=(Settings,), frozen=True)


def _fields(module: str, name: str) -> dict[str, tuple[Any, Any]]:
    """Annotations and fields of a dataclass and of those of ours that it derives from, in their order."""
    node = _names(module).get(name)
    if isinstance(node, tuple) and node[0].startswith("sfumato.") and node[0] not in _IMPORTED:
        return _fields(*node)
    if not isinstance(node, ast.ClassDef):
        return {}
    out: dict[str, tuple[Any, Any]] = {}
    for base in node.bases[::-1]:
        out |= _fields(module, base.id) if isinstance(base, ast.Name) else {}
    if not any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        return out
    texts = behind(node.body)
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            kind = _value(module, each.annotation)
            if "ClassVar" not in str(kind):
                out[each.target.id] = kind, _field(module, each.value, kind, texts.get(each.target.id, ""))
    return out


def _field(module: str, default: ast.expr | None, kind: Any, text: str) -> Any:
    given: dict[str, Any] = {} if default is None else {"default": default}
    if isinstance(default, ast.Call) and ast.unparse(default.func) == "field":
        given = {str(each.arg): each.value for each in default.keywords if each.arg not in ("repr", "compare")}
    if not given.keys() <= {"default", "default_factory", "metadata"}:
        raise _Unsure
    metadata = _value(module, given.pop("metadata")) if "metadata" in given else {}
    # of a kind that is not read no value is made, and any will do
    values: dict[str, Any] = (
        {"default": None} if given and _unread(kind) else {k: _value(module, v) for k, v in given.items()}
    )
    return field(**values, metadata={**metadata, "help": text})


def _unread(kind: Any) -> bool:
    return (isinstance(kind, type) and issubclass(kind, Unread)) or any(map(_unread, get_args(kind)))


def _value(module: str, node: ast.expr) -> Any:
    """What an expression of a file is."""
    made = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - made
    known = {name: _named(module, name) for name in names}
    try:
        return eval(compile(ast.Expression(node), module, "eval"), known)
    except Exception:
        raise _Unsure from None


@cache
def _named(module: str, name: str) -> Any:
    """What a name of a module is."""
    node = _names(module).get(name, MISSING)
    if isinstance(node, tuple):
        of, own = node
        if of in _IMPORTED:
            return getattr(import_module(of), own) if own else import_module(of)
        return _named(of, own) if own and of.startswith("sfumato.") else type(own or name, (Unread,), {})
    if isinstance(node, ast.ClassDef):
        return type(name, (Unread,), {})
    if isinstance(node, ast.expr):
        return _value(module, node)
    if node is MISSING and hasattr(builtins, name):
        return getattr(builtins, name)
    raise _Unsure


@cache
def _names(module: str) -> dict[str, Any]:
    """What is defined at the top of a module of ours: classes, values, and imports as module and name."""
    out: dict[str, Any] = {}
    todo = list(ast.parse(source_of(module.removeprefix("sfumato."))).body)
    for node in todo:
        if isinstance(node, ast.If):
            todo += node.body
        elif isinstance(node, ast.ClassDef):
            out[node.name] = node
        elif isinstance(node, ast.FunctionDef):
            out[node.name] = None
        elif isinstance(node, ast.ImportFrom):
            out |= {each.asname or each.name: (str(node.module), each.name) for each in node.names}
        elif isinstance(node, ast.Import):
            out |= {each.asname or each.name: (each.name, "") for each in node.names}
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            out[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            out[node.target.id] = node.value
    return out
