"""What a command that measures leaves behind: a figure, and its numbers in a JSON document beside it."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any

from sfumato.io.files import write_text
from sfumato.io.terminal import print_json


def tell(picture: Path, numbers: dict[str, Any], json: bool, first: str = "") -> None:
    """Write the numbers beside the figure, and say ``first`` and where both are, or print them."""
    file = picture.with_suffix(".json")
    write_text(file, dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    said = "\n".join(filter(None, (first, str(picture), str(file))))
    print_json({"figure": str(picture), **numbers}) if json else print(said)
