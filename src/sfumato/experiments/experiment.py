"""What an experiment is: settings, a run on a model, and findings that are told in numbers and drawn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sfumato.core.settings import Between, Settings
from sfumato.errors import SfumatoError
from sfumato.io.files import named

if TYPE_CHECKING:
    from sfumato.core.backbone import Backbone


class Findings(ABC):
    """What an experiment found."""

    @abstractmethod
    def numbers(self) -> Any:
        """The figures, for a machine to read."""

    @abstractmethod
    def draw(self, path: Path, about: str = "") -> None:
        """Write a figure as a PNG, with a line about it; of several figures, all beside ``path``."""

    def figures(self, path: Path) -> dict[str, Path]:
        """What ``draw`` writes, by names."""
        return {"figure": path}

    def ours(self) -> str:
        """What the numbers say, to stand beside the source's finding."""
        return ""

    def table(self) -> list[dict[str, str]]:
        """The numbers as a few rows for a person, where there is no sentence."""
        return []


Seed = Annotated[int, Between(0, 2**31 - 1)]


@dataclass(frozen=True)
class Experiment(Settings, ABC):
    """A source's figure or table, measured again. Fields are its settings.

    ``SfumatoError`` for a number that is not finite or out of its bounds, and for numbers of which two are the same.
    """

    source: ClassVar[str] = ""
    """What the source found, in a sentence, where ours stands beside it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, tuple) and isinstance(f.default, tuple) and f.default:
                different(f.name, value)

    @property
    def works(self) -> int:
        """How many works one after the other it is, for one bar over them all."""
        return 1

    @abstractmethod
    def run(self, model: Backbone) -> Findings:
        """Measure it."""

    def about(self, model: Backbone) -> str:
        """The line about its figure: the model, and what it looks at, which is the first setting."""
        first = getattr(self, fields(self)[0].name)
        return f"{named(model.name)}: {first.name if isinstance(first, Path) else first}"

    def settings(self, model: Backbone) -> dict[str, Any]:
        """What is told of them beside the numbers."""
        return {}

    def path(self, folder: Path, word: str) -> Path:
        """The file of its figure, in a folder, by the word that asks for it. Its numbers are beside it."""
        return folder / f"{word}.png"

    def document(self, model: Backbone, found: Findings) -> dict[str, Any]:
        """All that is told, for a machine to read."""
        settings, numbers = self.settings(model), found.numbers()
        if not self.source:
            return {**settings, **numbers}
        return {"source": self.source, "ours": found.ours(), "settings": settings, "found": numbers}


def different(name: str, values: Sequence[Any]) -> None:
    """Refuse none at all, two of the same, and what is no finite number."""
    finite = all(math.isfinite(v) for v in values if isinstance(v, float))
    if not finite or len(set(values)) < max(1, len(values)):
        raise SfumatoError(f"{name}: different values are meant, got {plain(values) or 'none'}")


def plain(value: Any) -> str:
    """A setting as a few words."""
    if isinstance(value, list | tuple):
        return " ".join(map(plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
