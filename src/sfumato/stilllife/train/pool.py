"""What a denoiser trains on, held in memory: latents, what stands where, depth, and captions as tokens.

To word and tokenise a caption takes a processor 0.1 ms, about as long as a GPU takes to learn from one. So every image
gets a few captions once, by a process a core; they are kept beside the shards. A step then draws an image and one of
its captions, or none, on the device, by a generator that is seeded by (seed, step).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.io.files import atomic
from sfumato.stilllife import captions, networks
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.scene import COLOURS, VIEWS, Scene, view
from sfumato.stilllife.train.data import Shards, _each_process

CELL = 8  # pixels: what stands in a cell of the latents is read at its middle
_STREAM = 8  # of the captions' random numbers


@dataclass(frozen=True)
class Picked:
    """b images as drawn, all on the device."""

    latents: Float[Tensor, "b 4 16 16"]
    thing: Int[Tensor, "b 16 16"]  # 0 for none, else 1 + index, in each cell
    depth: Float[Tensor, "b 64 64"]
    labels: Int[Tensor, "b 3 things"]  # as ``labels`` gives them
    tokens: Int[Tensor, "b 77"]


class Pool:
    """The images of ``shards``, whose latents are there, with ``count`` captions each."""

    def __init__(self, shards: Shards, count: int, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.device = torch.device(device)
        written = [load_file(f) for f in write_captions(shards, count, seed)]

        def whole(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat([part.to(self.device) for part in parts])

        self.latents = whole(shards.latents)
        middle = CELL // 2
        self.thing = whole([shards.field(i, "thing")[:, middle::CELL, middle::CELL] for i in range(len(shards.files))])
        self.depth = whole([shards.field(i, "depth") for i in range(len(shards.files))])
        self.labels, self.tokens = (whole([t[k] for t in written]) for k in ("labels", "tokens"))
        self.empty = _tokens([""])[0].to(self.device)
        self.odds = None if shards.odds is None else torch.from_numpy(shards.odds).float().to(self.device)

    def __len__(self) -> int:
        return len(self.tokens)

    def pick(self, step: int, size: int, empty: float) -> Picked:
        """A step's batch; a part ``empty`` of the captions says nothing."""
        draw = torch.Generator(self.device).manual_seed((self.seed * 1_000_003 + step) % 2**63)

        def below(most: int) -> Tensor:
            return torch.randint(most, (size,), generator=draw, device=self.device)

        if self.odds is None:
            at = below(len(self))
        else:
            at = torch.multinomial(self.odds, size, replacement=True, generator=draw)
        which = below(self.tokens.shape[1])
        silent = torch.rand(size, generator=draw, device=self.device) < empty
        tokens = torch.where(silent[:, None], self.empty, self.tokens[at, which]).long()
        return Picked(
            self.latents[at].float(), self.thing[at], self.depth[at].float(), self.labels[at].long(), tokens
        )  # fmt: skip


def labels(scenes: Sequence[Scene]) -> Int[Tensor, "b 3 things"]:
    """Kind, colour and view of each scene's things as numbers from 1; the first place stands for no thing and holds 0,
    as does a view that has no word."""
    table = torch.zeros(len(scenes), 3, 1 + Scene.most, dtype=torch.long)
    for row, scene in enumerate(scenes):
        for k, seen in enumerate(scene.things):
            table[row, 0, 1 + k] = 1 + TRAINED.index(seen.kind)
            table[row, 1, 1 + k] = 1 + COLOURS.index(seen.colour)
            shown = view(scene, k)
            table[row, 2, 1 + k] = 1 + VIEWS.index(shown) if shown else 0
    return table


def write_captions(shards: Shards, count: int, seed: int) -> list[Path]:
    """The files of the shards' captions, written where they are missing: ``tokens`` int16 (n, count, 77), ``labels``
    int8. They lie beside the shards in a folder named by their number, the seed and the words of both."""
    words = sha256(" ".join((*captions.WORDS, *TRAINED, *COLOURS, *VIEWS)).encode()).hexdigest()[:8]
    folder = shards.files[0].parent / f"captions-{count}-{seed}-{words}"
    jobs = [(file, folder / file.name, count, seed, i) for i, file in enumerate(shards.files)]
    missing = [job for job in jobs if not job[1].exists()]
    if len(missing) > 1:
        _each_process(_write, missing, min(os.cpu_count() or 1, 16), "wording captions")
    else:
        for job in missing:  # a process of its own takes longer to start
            _write(job)
    return [job[1] for job in jobs]


def _write(job: tuple[Path, Path, int, int, int]) -> None:
    file, to, count, seed, number = job
    rng = np.random.default_rng((seed, _STREAM, number))
    scenes = [Scene.from_json(line) for line in file.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    tokens = _tokens([captions.caption(scene, rng) for scene in scenes for _ in range(count)])
    with atomic(to) as part:
        save_file({"tokens": tokens.unflatten(0, (-1, count)), "labels": labels(scenes).to(torch.int8)}, part)


def _tokens(words: Sequence[str]) -> Int[Tensor, "n 77"]:
    """As ``unet.Frozen.embed`` reads them, in 16 bits."""
    padded = {"padding": "max_length", "max_length": networks.TOKENS, "truncation": True}
    return networks.tokenizer()(list(words), return_tensors="pt", **padded).input_ids.to(torch.int16)
