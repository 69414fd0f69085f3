"""Reading an image at the size of Stable Diffusion 1.5: ``python benchmarks/perceive.py [--side 512]``.

Time and peak memory of DiffSeg, DIFT and the attribution of words on networks of Stable Diffusion 1.5's own shape with
random weights, float32, on all cores that torch takes. Segments and matches of random weights mean nothing; what they
cost is what the real ones cost. The image is encoded once, before anything is timed.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable

import numpy as np
import torch
from shapes import empty, fill, sd15

from sfumato.backbones.unet import UNet
from sfumato.bench.truth import renders
from sfumato.bench.units import timed
from sfumato.io.device import choose
from sfumato.methods.perceive.diff_seg import DiffSeg
from sfumato.methods.perceive.dift import DIFT
from sfumato.methods.perceive.text_attribution import TextAttribution
from sfumato.reading.reader import read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device, model = choose(args.device), UNet("Stable Diffusion 1.5, random", fill(empty(sd15)))
    model.pipe.to(device)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {device}, {args.side} pixels")
    images = renders(np.random.default_rng(0), 2, args.side).images
    with torch.no_grad(), read(model, images[0], args.side) as one, read(model, images[1], args.side) as other:
        points = torch.rand(100, 2) * args.side
        tried: dict[str, Callable[[], object]] = {
            "encode": lambda: (one.latents, other.latents),
            "DiffSeg": lambda: DiffSeg()(one),
            "DIFT, a pair, ensembles of 8": lambda: DIFT()(one, other, points),
            "text attribution, 10 steps": lambda: TextAttribution(("cube", "grass"))(one),
        }
        for name, work in tried.items():
            _, cost = timed(work, device)
            print(f"{name}: {cost['seconds']:.1f} s, {cost['peak_mb']:.0f} MiB beyond the networks", flush=True)


if __name__ == "__main__":
    main()
