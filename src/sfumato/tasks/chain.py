"""Methods that take part in one run, in order."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sfumato.core.method import Method
    from sfumato.inversion import Inversion
    from sfumato.media.images import Fitted
    from sfumato.prompts.layout import Layout, Mask


@dataclass(frozen=True)
class Chain:
    """Methods as they were asked for, in order."""

    items: tuple[Any, ...] = ()
    names: tuple[str, ...] = ()
    named: tuple[frozenset[str], ...] = field(default=(), repr=False, compare=False)
    """Of each the fields that were asked for, also those with the value that they have anyway."""

    @property
    def methods(self) -> list[Method]:
        """Those that take part in each step."""
        from sfumato.core.method import Method
        from sfumato.inversion import Inversion

        return [item for item in self.items if isinstance(item, Method) and not isinstance(item, Inversion)]

    def starter(self, fallback: Inversion) -> Inversion:
        """The one that says where to start. ``SfumatoError`` for two."""
        from sfumato.inversion import Inversion

        found = [(n, item) for n, item in zip(self.names, self.items, strict=True) if isinstance(item, Inversion)]
        if len(found) > 1:
            raise SfumatoError(f"{found[0][0]} and {found[1][0]} both say where to start; use one of them")
        return found[0][1] if found else fallback

    def given(self, **values: Any) -> Chain:
        """With values for the fields of those names, where they have them and nothing was said; ``None`` is left."""

        def filled(item: Any) -> Any:
            own = {f.name: f for f in fields(item)}
            new = {k: v for k, v in values.items() if v is not None and k in own and _unsaid(item, own[k])}
            return replace(item, **new) if new else item

        return replace(self, items=tuple(map(filled, self.items)))

    def of(self, height: int, width: int) -> Chain:
        """With masks and layouts as those of a picture of this size. ``SfumatoError`` for masks of another shape."""
        return self._placed(lambda place: place.of(height, width))

    def seeing(self, fitted: Fitted) -> Chain:
        """With the masks and layouts of a picture as those of what a model sees of it."""
        original = fitted.original
        return self.of(original.height, original.width)._placed(lambda place: place.within(fitted.part))

    @property
    def has_places(self) -> bool:
        """Is there a mask or a layout among its settings?"""
        from sfumato.prompts.layout import Layout, Mask

        return any(isinstance(value, Layout | Mask) for item in self.items for value in values(item).values())

    def _placed(self, new: Callable[[Layout | Mask], Layout | Mask]) -> Chain:
        from sfumato.prompts.layout import Layout, Mask

        def shown(item: Any) -> Any:
            return replace(item, **{name: new(v) for name, v in values(item).items() if isinstance(v, Layout | Mask)})

        return replace(self, items=tuple(map(shown, self.items)))

    def stepped(self, steps: int | None) -> Chain:
        """With so many steps for the one that says where to start, if it is said."""
        from sfumato.inversion import Inversion

        if steps is None:
            return self
        return replace(self, items=tuple(_stepped(i, steps) if isinstance(i, Inversion) else i for i in self.items))


NONE = Chain()


def _stepped(inversion: Any, steps: int) -> Inversion:
    return replace(inversion, steps=steps)


def values(item: Any) -> dict[str, Any]:
    return {f.name: getattr(item, f.name) for f in fields(item) if f.init}


def _unsaid(item: Any, of: Any) -> bool:
    return getattr(item, of.name) == of.default
