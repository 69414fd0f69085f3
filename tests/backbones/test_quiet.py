"""Loading a model says nothing on stderr but how far it is."""

from __future__ import annotations

import subprocess
import sys

from families import write

LOADING = "from sfumato import load\nfor dtype in ('float32', 'float16'):\n    load({!r}, device='cpu', dtype=dtype)"
PAINTING = "from sfumato import cli\nassert cli.main(['generate', 'a cube', '--model', {!r}, *{!r}]) == 0"


def said(code: str) -> list[str]:
    """What a new process says on stderr, without bars."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stderr.replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip() and "it/s]" not in line and "?it/s" not in line]


def test_neither_loading_nor_a_command_says_anything(tmp_path):
    """In one process, whose start takes longer than all that it does; a command, which silences the libraries, last."""
    options = ["--n", "1", "--steps", "1", "--size", "64", "--out", str(tmp_path / "out")]
    code = [LOADING.format(model) for model in (str(write("sd", tmp_path)), "stilllife")]
    code += ["import sys; print('loaded', file=sys.stderr)", PAINTING.format(str(write("sdxl", tmp_path)), options)]
    lines = said("\n".join(code))
    assert lines[0] == "loaded" and not [line for line in lines[1:] if "images" not in line]


def test_prompts_that_are_known_are_not_asked_of_the_text_encoder_again(models, monkeypatch):
    """Nor are the libraries' loggers touched, which costs more than to look a prompt up."""
    from sfumato.backbones import latent

    model, entered, quietly = models("sd"), [], latent.quietly
    first = model.embed(["a cube", "a ball"]).text
    monkeypatch.setattr(latent, "quietly", lambda: (entered.append(1), quietly())[1])
    assert (model.embed(["a ball", "a cube"]).text == first.flip(0)).all() and not entered
    model.embed(["a cone that nobody has named"])
    assert entered == [1]
