"""Tables hold all that their cells do, in pipes and on narrow terminals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sfumato
from sfumato.bench import report
from sfumato.io import terminal

PATH = "up_blocks.2.attentions.2.transformer_blocks.0.attn2"
ROWS = [{"index": 1, "path": PATH, "pairs": ["image->text", "[0]"]}, {"index": 2, "path": ":smile: " + "word " * 30}]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on many a build machine


def test_in_a_pipe_a_row_is_a_line(capsys):
    terminal.print_table(ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line == line.rstrip() for line in lines)
    assert PATH in lines[1] and lines[1].endswith("image->text, [0]") and ":smile: " + "word " * 29 + "word" in lines[2]


def test_on_a_terminal_cells_are_folded(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    terminal.print_table(ROWS)
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "…" not in out and max(map(len, out.splitlines())) <= 50 and out.count("word") == 30
    assert "".join(re.findall(r"(?:(?<=1      )|(?<=^       ))[\w.]+", out, re.MULTILINE)).startswith(PATH)


def test_a_bench_is_whole_too(capsys):
    meaning = "how near it is to the truth, " * 8
    found = report.Report("edit", 2, 0, "cpu", {"psnr": meaning}, {}, {"psnr": 3.0})
    found.compared = {"method": report.Comparison((PATH,), {"sdedit": {"a": {PATH: 1.0}, "b": {PATH: 2.0}}})}
    report.show(found, as_json=False)
    out = capsys.readouterr().out
    assert meaning.rstrip() in out and PATH in out and "edit, n = 2, seed 0" in out


def test_nothing_else_prints_tables():
    for file in Path(sfumato.__file__).parent.rglob("*.py"):
        consoles = re.findall(r"Console\((?!stderr=True).*", file.read_text(encoding="utf-8"))
        assert not consoles or file.name == "terminal.py", (file, consoles)
