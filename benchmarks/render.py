"""Images a second of the renderer: ``python benchmarks/render.py [--images 64] [--device cpu]``.

Method: scenes of two things drawn from one seed, 128 x 128, in batches of 16, all cores that torch takes; one batch to
warm up, then the batches are timed together. "anew" traces and shades every image; "dressed" shades each trace in four
appearances, as training does.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import torch

from sfumato.io.device import choose
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.render import render, shade, trace
from sfumato.stilllife.scene import Scene, redress, sample_scene

BATCH = 16
PRIMITIVES = ("sphere", "cube", "cylinder", "cone", "ring")


def rate(work: Callable[[list[Scene]], int], scenes: list[Scene], device: torch.device) -> float:
    """Images a second of ``work``, which tells how many images it made of a batch."""
    work(scenes[:BATCH])
    if device.type == "cuda":
        torch.cuda.synchronize()
    began, made = time.perf_counter(), 0
    for i in range(0, len(scenes), BATCH):
        made += work(scenes[i : i + BATCH])
    if device.type == "cuda":
        torch.cuda.synchronize()
    return made / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = choose(args.device)
    rng = np.random.default_rng(0)

    def anew(scenes: list[Scene]) -> int:
        return len(render(scenes, device=device).images)

    def dressed(scenes: list[Scene]) -> int:
        buffers = trace(scenes, device=device)
        return sum(len(shade(buffers, d)) for d in (scenes, *([redress(s, rng) for s in scenes] for _ in range(3))))

    print(f"{device}, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}")
    for name, kinds in (("two primitives", PRIMITIVES), ("two of any kind", TRAINED)):
        scenes = [sample_scene(rng, count=2, kinds=kinds) for _ in range(args.images)]
        print(f"{name:16} anew {rate(anew, scenes, device):6.1f}/s   dressed {rate(dressed, scenes, device):6.1f}/s")


if __name__ == "__main__":
    main()
