"""Loading a model says nothing on stderr but how far it is."""

from __future__ import annotations

import subprocess
import sys

from families import write

LOADING = "from sfumato import load\nfor dtype in ('float32', 'float16'):\n    load({!r}, device='cpu', dtype=dtype)"
PAINTING = "import sys\nfrom sfumato import cli\nsys.exit(cli.main(['generate', 'a cube', '--model', {!r}, *{!r}]))"


def said(code: str) -> list[str]:
    """What a new process says on stderr, without bars."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stderr.replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip() and "it/s]" not in line and "?it/s" not in line]


def test_loading_says_nothing(tmp_path):
    assert not said("\n".join(LOADING.format(model) for model in (str(write("sd", tmp_path)), "stilllife")))


def test_a_command_says_nothing(tmp_path):
    options = ["--n", "1", "--steps", "1", "--size", "64", "--out", str(tmp_path / "out")]
    assert not [line for line in said(PAINTING.format(str(write("sdxl", tmp_path)), options)) if "images" not in line]


def test_prompts_that_are_known_are_not_asked_of_the_text_encoder_again(models, monkeypatch):
    """Nor are the libraries' loggers touched, which costs more than to look a prompt up."""
    from sfumato.backbones import latent

    model, entered, quietly = models("sd"), [], latent.quietly
    first = model.embed(["a cube", "a ball"]).text
    monkeypatch.setattr(latent, "quietly", lambda: (entered.append(1), quietly())[1])
    assert (model.embed(["a ball", "a cube"]).text == first.flip(0)).all() and not entered
    model.embed(["a cone that nobody has named"])
    assert entered == [1]
