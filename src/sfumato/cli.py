"""The command line. Each command is a module of ``sfumato.commands``; none imports torch before it runs."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from inspect import getdoc
from io import TextIOWrapper
from typing import Any

import tyro

from sfumato import __version__
from sfumato.commands import argv, fields, first, help
from sfumato.commands import completion as completions
from sfumato.commands import experiment as experiments
from sfumato.commands.bench import bench
from sfumato.commands.capture import capture
from sfumato.commands.completion import completion
from sfumato.commands.describe import describe
from sfumato.commands.distill2d import distill2d
from sfumato.commands.edit import edit
from sfumato.commands.edit_scene import edit_scene
from sfumato.commands.experiment import experiment
from sfumato.commands.export import export
from sfumato.commands.export_scene import export_scene
from sfumato.commands.features import features
from sfumato.commands.generate import generate
from sfumato.commands.illusion import illusion
from sfumato.commands.invert import invert
from sfumato.commands.keypoints import keypoints
from sfumato.commands.learn import learn
from sfumato.commands.lift import lift
from sfumato.commands.match import match
from sfumato.commands.methods import methods
from sfumato.commands.oneline import oneline, worded
from sfumato.commands.panorama import panorama
from sfumato.commands.reconstruct import reconstruct
from sfumato.commands.render import render
from sfumato.commands.segment import segment
from sfumato.commands.segment_scene import segment_scene
from sfumato.commands.shapes import shapes
from sfumato.commands.show import SHOWN, show
from sfumato.commands.tour import tour
from sfumato.commands.train_encoder import train_encoder
from sfumato.commands.train_head import train_head
from sfumato.commands.video import video
from sfumato.commands.views import views
from sfumato.errors import SfumatoError, out_of_memory, unknown
from sfumato.methods import index
from sfumato.tasks.kept import released


def _named(section: Sequence[Callable[..., None]]) -> dict[str, Callable[..., None]]:
    return {f.__name__.replace("_", "-"): f for f in section}


SECTIONS: dict[str, tuple[Callable[..., None], ...]] = {
    "paint": (generate, panorama, illusion, views, video),
    "edit": (edit, invert),
    "read": (segment, match, keypoints, features, shapes, describe),
    "learn": (learn, train_encoder, train_head),
    "in three dimensions": (distill2d, lift, capture, reconstruct, segment_scene, edit_scene, export_scene),
    "look inside, measure": (methods, show, experiment, bench),
    "the built-in world and model": (tour, render, export),
    "this program": (completion,),
}
COMMANDS = {name: f for section in SECTIONS.values() for name, f in _named(section).items()}
GROUPS = {"experiment": experiments.commands, "show": lambda *asked: SHOWN}
"""Commands that are a word more: each gives them all, when one is asked for, whose help may be."""
ABOUT = """Paint, edit, read and lift pictures with pretrained diffusion models, without retraining them; one ships.

Start with: sfumato generate "a red cube on grass at sunset"

See it all: sfumato tour --out out/tour

One command's help: sfumato edit --help; a method's: sfumato edit p2p --help; all methods: sfumato methods"""


def main(args: Sequence[str]) -> int:
    """Run one command. Returns the exit code: 0, 2 for what the caller can put right, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show is no reason to fail
    if list(args) == ["--version"]:
        print(f"sfumato {__version__}")
        return 0
    args, prog, commands = list(args) or ["--help"], "sfumato", dict[str, Callable[..., None]](COMMANDS)
    command, segments = None, []
    try:
        if args[0] == completions.ASKED:
            return _show("\n".join(completions.complete(args[1:], COMMANDS, GROUPS, _methods, index.HEADS)))
        if args[0] in help.ASKED:
            return _show(help.listed(ABOUT, prog, {title: _named(section) for title, section in SECTIONS.items()}))
        name, args = args[0], args[1:]
        if name in GROUPS:
            prog, about = f"sfumato {name}", getdoc(COMMANDS[name]) or ""
            commands = dict(GROUPS[name](args[0] if args else "", bool(help.ASKED & {*args})))
            if not args or args[0] in help.ASKED:
                return _show(help.listed(about, prog, {"one of": commands}))
            name, args = args[0], args[1:]
        if name not in commands:
            raise unknown("command", name, commands)
        command, prog = commands[name], f"{prog} {name}"
        words, heads = _methods(name), name == index.HEADS
        listed = _methods(name, command=name)
        looked = not help.ASKED & {*args} and first.check(args, fields.grammar(command), words, listed)
        of = partial(fields.of_method, head=heads)
        head, segments = argv.split(args, fields.grammar(command), words, of, listed)
        for word, *options in segments:
            if help.ASKED & {*options}:
                return _show(fields.help_of(word, prog, heads))
        if help.ASKED & {*head}:
            return _show(help.command(command, prog, _methods(name, aliases=False, command=name)))
        with oneline():
            run = tyro.cli(_later(command), prog=prog, args=head)
            first.whole(head, fields.grammar(command), prog, words, listed, looked)
            given = {"chain": fields.methods(segments, prog, heads)} if words else {}
        with released():
            run(**given)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 2 if e.code else 0
    except SfumatoError as e:
        if os.environ.get("SFUMATO_DEBUG"):
            raise
        options = fields.grammar(command).options if command else ()
        print(f"sfumato: {worded(e, options, [word for word, *_ in segments])}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if os.environ.get("SFUMATO_DEBUG"):
            raise
        print("sfumato: stopped", file=sys.stderr)
        return 130
    except (RuntimeError, MemoryError) as e:
        if os.environ.get("SFUMATO_DEBUG") or not out_of_memory(e):
            raise
        print("sfumato: out of memory; take smaller images, fewer at once, or --dtype float16", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe has gone: nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _methods(of: str, aliases: bool = True, command: str = "") -> list[str]:
    """Words that may stand behind a command, or, as ``command``, those that it takes."""
    return index.words(index.CHAINED.get(of, ()), aliases, of == index.HEADS, command)


def _show(text: str) -> int:
    print(text)
    return 0


def _later(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """A command that is parsed now and run then."""

    @wraps(command)
    def parsed(*args: Any, **options: Any) -> Callable[[], None]:
        return partial(command, *args, **options)

    return parsed


def entry() -> None:
    # torch then asks for large memory in large pages: attention at real sizes spends half its time on small ones
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    code = main(sys.argv[1:])
    gc.freeze()  # or the interpreter looks for circles in all that was imported, half a second, before it ends
    sys.exit(code)


if __name__ == "__main__":
    entry()
