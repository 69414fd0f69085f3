"""What tyro makes of a command or a method, kept: a person gives one command a process, and tests give hundreds, of
which most are refused and do nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from tyro._parsers import ParserSpecification
from tyro._singleton import NonpropagatingMissingType

from sfumato.cli import _later


def keep() -> Callable[[], None]:
    """From now on, until what is returned is called."""
    made: Any = ParserSpecification.from_callable_or_type
    found, once = {}, _later(print).__code__

    def parser(f: Any, **options: Any) -> Any:
        called = get_args(f)[0] if get_args(f) else f
        if options["parent_classes"] or not isinstance(options["default_instance"], NonpropagatingMissingType):
            return made(f, **options)  # of a part, or a preset's
        later = getattr(called, "__code__", None) is once  # a function of each time that the command is given
        key = (called.__wrapped__ if later else called), later
        if key not in found:
            found[key] = made(f, **options)
        return found[key]

    def undo() -> None:
        ParserSpecification.from_callable_or_type = staticmethod(made)

    ParserSpecification.from_callable_or_type = staticmethod(parser)
    return undo
