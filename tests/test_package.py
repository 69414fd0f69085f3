"""What installing and importing the package promises."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata, resources

import pytest

import sfumato


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_importing_brings_nothing_heavy():
    found = modules_after("import sfumato, sfumato.cli, sfumato.stilllife.captions")
    assert not {"torch", "diffusers", "transformers", "scipy"} & found


def test_stilllife_comes_when_named():
    assert sfumato.stilllife.__name__ == "sfumato.stilllife"
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = sfumato.nothing_such
    assert "stilllife" in dir(sfumato)


def test_the_version_is_the_one_installed():
    assert sfumato.__version__ == metadata.version("sfumato")


def test_it_says_that_it_is_typed():
    assert resources.files("sfumato").joinpath("py.typed").is_file()
