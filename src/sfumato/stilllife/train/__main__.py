"""The command line of training; a trainer is imported only when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import tyro

from sfumato.errors import SfumatoError
from sfumato.stilllife.train import AllOptions, DataOptions, Options

PROG = "python -m sfumato.stilllife.train"
TRAINERS = {
    "oracle": "Train the network that reads images.",
    "words": "Train the text half of the tiny CLIP on captions alone; comes before clip.",
    "clip": "Train the tiny CLIP, whose text half conditions the UNet.",
    "vae": "Train the autoencoder.",
    "decoder": "Train the autoencoder's decoder alone, which changes nothing for the other networks.",
    "unet": "Train the text-to-image UNet; needs the VAE and the CLIP.",
    "instruct": "Train the InstructPix2Pix relative; needs the UNet.",
    "depth": "Train the depth ControlNet; needs the UNet.",
    "motion": "Train a motion adapter on clips that are rendered meanwhile; needs the UNet.",
}
BACKGROUND = {
    "start": "Start a run that goes on beside other work, or go on with one.",
    "status": "Say how far the run is.",
    "stop": "Let the run save and end.",
    "ship": "Put its UNet into the weights that ship, if it is the better one.",
}


def _command(name: str, words: str, options: type, work: str = "run") -> Callable[..., None]:
    def command(args: Any) -> None:
        try:
            module = importlib.import_module(f"sfumato.stilllife.train.{name}")
        except ModuleNotFoundError as e:
            raise SfumatoError(f"this needs {e.name}; install it with: pip install {e.name}") from e
        getattr(module, work)(args)

    command.__doc__ = words
    command.__annotations__["args"] = Annotated[options, tyro.conf.arg(name="")]
    return command


def _background(argv: list[str]) -> None:
    """The commands of a run in the background; their options stand in the module, which imports no torch."""
    module = importlib.import_module("sfumato.stilllife.train.background")
    options = {k: get_type_hints(getattr(module, k))["args"] for k in BACKGROUND}
    commands = {k: _command("background", words, options[k], k) for k, words in BACKGROUND.items()}
    tyro.extras.subcommand_cli_from_dict(commands, prog=f"{PROG} background", args=argv)


def _listed() -> None:
    """Train the UNet beside other work: start, status, stop, ship."""


def main(argv: list[str] | None = None) -> int:
    """Run one trainer; returns the exit code (2 for what the caller can put right, 130 after Ctrl-C)."""
    argv = sys.argv[1:] if argv is None else argv
    commands = {
        "all": _command("everything", "Render, train every network, compare and pack, in minutes.", AllOptions),
        "background": _listed,
        "data": _command("data", "Render shards of scenes to train on; a GPU needs none.", DataOptions),
    }
    commands |= {name: _command(name, words, Options) for name, words in TRAINERS.items()}
    try:
        if argv[:1] == ["background"]:
            _background(argv[1:])
        else:
            tyro.extras.subcommand_cli_from_dict(commands, prog=PROG, args=argv)
    except SfumatoError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as e:
        print(str(e) or "stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
