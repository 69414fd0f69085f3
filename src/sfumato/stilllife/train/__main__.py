"""The command line of training; a trainer is imported only when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from sfumato.errors import SfumatoError
from sfumato.stilllife.train import DataOptions, Options

TRAINERS = {
    "oracle": "Train the network that reads images.",
    "words": "Train the text half of the tiny CLIP on captions alone; comes before clip.",
    "clip": "Train the tiny CLIP, whose text half conditions the UNet.",
    "vae": "Train the autoencoder.",
    "unet": "Train the text-to-image UNet; needs the VAE and the CLIP.",
    "instruct": "Train the InstructPix2Pix relative; needs the UNet.",
    "depth": "Train the depth ControlNet; needs the UNet.",
}


def _command(name: str, words: str, options: type) -> Callable[..., None]:
    def command(args: Any) -> None:
        try:
            module = importlib.import_module(f"sfumato.stilllife.train.{name}")
        except ModuleNotFoundError as e:
            raise SfumatoError(f"this needs {e.name}: pip install 'sfumato[train]'") from e
        module.run(args)

    command.__doc__ = words
    command.__annotations__["args"] = Annotated[options, tyro.conf.arg(name="")]
    return command


def main(argv: list[str] | None = None) -> int:
    """Run one trainer; returns the exit code (2 for what the caller can put right, 130 after Ctrl-C)."""
    commands = {"data": _command("data", "Render shards of scenes to train on; a GPU needs none.", DataOptions)}
    commands |= {name: _command(name, words, Options) for name, words in TRAINERS.items()}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m sfumato.stilllife.train", args=argv)
    except SfumatoError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as e:
        print(str(e) or "stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
