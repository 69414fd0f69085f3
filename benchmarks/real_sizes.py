"""What methods cost at the published models' sizes: ``python benchmarks/real_sizes.py --out FOLDER [--device cuda]``.

Networks have the true shapes and random weights; pictures of them mean nothing. Each row is measured in a process of
its own and written to ``FOLDER/rows.jsonl``; a row that is there is not measured again. What needs more memory than the
machine has is not begun, and said so. On a CPU the first of 50 steps is taken, on a GPU all of ten, beside diffusers'
own pipelines on the same weights. ``--page`` writes the rows to docs/real-sizes.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import shapes
import torch

from sfumato.backbones.load import family
from sfumato.bench.memory import allocated
from sfumato.bench.truth import renders
from sfumato.bench.units import timed
from sfumato.core.backbone import Backbone
from sfumato.core.denoising import denoise, plan
from sfumato.core.method import Method, Step
from sfumato.core.sites import Layer, Site
from sfumato.inversion import NullText, invert
from sfumato.io.device import choose
from sfumato.io.files import write_text
from sfumato.methods.control import AttendAndExcite
from sfumato.methods.edit import LocalBlend, MasaCtrl, PlugAndPlay, PromptToPrompt
from sfumato.methods.perceive.diff_seg import DiffSeg
from sfumato.methods.perceive.dift import DIFT
from sfumato.reading.price import price
from sfumato.reading.reader import read

PAGE = Path(__file__).parents[1] / "docs" / "real-sizes.md"
ALONE = "a red cube and a duck"
EDIT = {"source": ALONE, "target": "a blue cube and a duck"}
TINY = 256


@dataclass(frozen=True)
class Model:
    """A published model's shape."""

    name: str
    make: Callable[[bool], Any]
    side: int


MODELS = {
    "sd15": Model("Stable Diffusion 1.5", shapes.sd15, 512),
    "sd21": Model("Stable Diffusion 2.1", shapes.sd21, 768),
    "sdxl": Model("Stable Diffusion XL base", shapes.sdxl, 1024),
    "sd3": Model("Stable Diffusion 3 medium, without T5", shapes.sd3, 1024),
}
METHODS: dict[str, tuple[Any, tuple[Method, ...]]] = {
    "sampling": (ALONE, ()),
    "sampling of two": (EDIT, ()),
    "Prompt-to-Prompt": (EDIT, (PromptToPrompt(),)),
    "Prompt-to-Prompt, blended": (EDIT, (PromptToPrompt(blend=LocalBlend("cube", "cube")),)),
    "MasaCtrl": (EDIT, (MasaCtrl(after=0.0),)),
    "Plug-and-Play": (EDIT, (PlugAndPlay(),)),
    "Attend-and-Excite": (ALONE, (AttendAndExcite(refine_at=(), refine_to=()),)),
}
"""Prompts and what takes part; settings that act in the first step, and refine nothing there."""
READING = ("DiffSeg", "DIFT", "null-text, a step")
ROWS = ("load", "diffusers", *METHODS, *READING)


class _Enough(Exception):
    """The first step is done."""


@dataclass
class Task:
    """A row that is measured: on which networks, and how many steps."""

    model: Model
    what: str
    device: torch.device
    dtype: torch.dtype
    tiny: bool
    steps: int

    @property
    def side(self) -> int:
        return TINY if self.tiny else self.model.side

    def row(self) -> dict[str, Any]:
        """Figures, or why there are none."""
        began = time.perf_counter()
        pipe = shapes.empty(self.model.make, self.tiny)
        weights = shapes.numbers(pipe) * self.dtype.itemsize
        if (why := self._too_large(weights)) is not None:
            return why
        shapes.fill(pipe, self.dtype).to(self.device)
        model = family(self.model.name, pipe)
        loaded = {"seconds": time.perf_counter() - began, "weights_mib": weights / 2**20}
        if self.what == "load":
            return loaded
        if self.what == "diffusers":
            return self._diffusers(pipe)
        return self._method(model) if self.what in METHODS else self._reading(model)

    def _method(self, model: Backbone) -> dict[str, Any]:
        prompts, methods = METHODS[self.what]
        options: dict[str, Any] = {"methods": methods, "size": self.side, "steps": self.steps if self.steps > 1 else 50}
        try:
            planned, figures = timed(lambda: plan(model, prompts, **options), self.device)
            began = time.perf_counter()
            planned.bytes  # noqa: B018
        except Exception as e:
            return {"skipped": str(e)}
        row = {"plan_ms": 1e3 * figures["seconds"], "price_ms": 1e3 * (time.perf_counter() - began)}
        row |= {"plan_mib": planned.bytes / 2**20, "bound": any(price.bound for price in planned.prices)}
        gradient = "Excite" in self.what
        rows = 1 if gradient else len(planned.run.rows)
        needed = planned.bytes + activations(model, rows, planned.run.grid, gradient)
        if (why := self._too_large(needed)) is not None:
            return row | why

        def stop(step: Step) -> None:
            if self.steps == 1:
                raise _Enough

        def work() -> None:
            with suppress(_Enough):
                denoise(model, prompts, callback=stop, **options)

        return row | self._measured(work)

    def _reading(self, model: Backbone) -> dict[str, Any]:
        grid = (self.side // model.factor, self.side // model.factor)
        gradient = self.what == READING[2]
        needed = activations(model, 1 if gradient else 2, grid, gradient) + (8 * self.side**2 * 128 * 4)
        if self.what == "DiffSeg":
            sites = [s.grid(grid) for s in model.sites if "image->image" in s.pairs]
            needed += sum(4 * (height * width) ** 2 for height, width in sites)
        if (why := self._too_large(needed)) is not None:
            return why
        images = renders(np.random.default_rng(0), 2, self.side).images
        if gradient:
            return self._measured(lambda: invert(model, images[:1], ALONE, NullText(steps=1, inner=1)))
        row = self._priced(model)
        with torch.no_grad(), read(model, images[0], self.side) as one, read(model, images[1], self.side) as other:
            _ = one.latents, other.latents  # encoded before anything is measured
            points = torch.rand(100, 2) * self.side
            seeds = count()  # what was read with a seed is kept by the readers
            matched = lambda: DIFT(seed=next(seeds))(one, other, points)  # noqa: E731
            return row | self._measured(partial(DiffSeg(), one) if self.what == "DiffSeg" else matched)

    def _priced(self, model: Backbone) -> dict[str, Any]:
        """What a reading is said to take."""
        began = time.perf_counter()
        reading = DiffSeg() if self.what == "DiffSeg" else DIFT().features
        planned = price(model, reading, (self.side, self.side), self.side)
        return {"plan_mib": planned / 2**20, "plan_ms": 1e3 * (time.perf_counter() - began)}

    def _diffusers(self, pipe: Any) -> dict[str, Any]:
        pipe.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": self.steps, "guidance_scale": 7.5, "height": self.side, "width": self.side}
        return self._measured(lambda: pipe(ALONE, output_type="pt", **options))

    def _measured(self, work: Callable[[], Any]) -> dict[str, Any]:
        """Seconds, the peak beyond the weights, and of a CPU what was allocated, and within taps."""
        if self.device.type != "cpu":
            work()  # kernels are chosen the first time
            return _figures(timed(work, self.device)[1])
        made, figures = timed(lambda: allocated(work), self.device)  # at once: a step takes minutes
        return _figures(figures) | {"allocated_mib": made.peak / 2**20, "tapped_mib": made.tapped / 2**20}

    def _too_large(self, needed: float) -> dict[str, Any] | None:
        free = torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else psutil.virtual_memory().available
        if needed < 0.95 * free:
            return None
        return {"skipped": f"needs about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"}


def _figures(figures: dict[str, float]) -> dict[str, float]:
    return {"seconds": figures["seconds"], "peak_mib": figures["peak_mb"]}


def activations(model: Backbone, rows: int, grid: tuple[int, int], grad: bool) -> float:
    """Bytes that the network takes for a prediction, roughly: some tensors of its largest place, or with a gradient,
    which goes through one row, of all places."""

    def numbers(at: Site | Layer) -> int:
        height, width = at.grid(grid)
        return height * width * (at.heads * at.dim if isinstance(at, Site) else at.width)

    sizes = [20 * numbers(s) for s in model.sites] + [8 * numbers(la) for la in model.layers if la.kind == "residual"]
    return rows * model.dtype.itemsize * (sum(sizes) if grad else 2 * max(sizes))


@cache
def fastest() -> str:
    """bfloat16 where the processor multiplies in it faster than in float32."""
    x, took = torch.randn(2048, 2048), {}
    for dtype in (torch.float32, torch.bfloat16):
        y = x.to(dtype)
        y @ y
        began = time.perf_counter()
        for _ in range(3):
            y @ y
        took[dtype] = time.perf_counter() - began
    return "bfloat16" if took[torch.bfloat16] < took[torch.float32] else "float32"


def machine(device: str) -> str:
    """The processor and what it computes with."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    sets = [s for s in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if s in found.get("flags", "").split()]
    memory = psutil.virtual_memory().total / 2**30
    return f"{found.get('model name', 'CPU')} ({', '.join(sets)}), {torch.get_num_threads()} threads, {memory:.0f} GiB"


def child(args: argparse.Namespace, name: str, what: str) -> dict[str, Any]:
    """A row measured in a process of its own, which may be killed where memory ends."""
    options = ["--row", name, what, "--device", args.device, "--dtype", args.dtype, "--steps", str(args.steps)]
    command = [sys.executable, __file__, *options, *(["--tiny"] if args.tiny else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == -9:
        return {"failed": "killed: memory ran out"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def recorded(file: Path) -> list[dict[str, Any]]:
    """The rows of a file, but for one that was cut off."""
    rows = []
    for text in file.read_text().splitlines() if file.exists() else ():
        with suppress(ValueError):
            rows.append(json.loads(text))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("real-sizes"))
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--only", nargs="*", default=ROWS, choices=ROWS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="bfloat16 or float32, whichever is faster; float16 on a GPU")
    parser.add_argument("--steps", type=int, help="1 on a CPU, 10 on a GPU")
    parser.add_argument("--tiny", action="store_true", help="a tenth of the width, 256 pixels: to try the script")
    parser.add_argument("--page", action="store_true", help="write docs/real-sizes.md from the rows and end")
    parser.add_argument("--note", help="what else the page says of how they were measured")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    gpu = args.device != "cpu"
    args.steps = args.steps or (10 if gpu else 1)
    args.dtype = args.dtype or ("float16" if gpu else fastest())
    if args.row:
        name, what = args.row
        device, dtype = choose(args.device), getattr(torch, args.dtype)
        print(json.dumps(Task(MODELS[name], what, device, dtype, args.tiny, args.steps).row()))
        return
    file = args.out / "rows.jsonl"
    rows = recorded(file)
    if args.page:
        write_text(PAGE, page(rows, args.note))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [what for what in args.only if what != "diffusers" or args.steps > 1]  # a pipeline does not stop at once
    for name in args.models:
        for what in wanted:
            key = {"model": name, "what": what, "machine": machine(args.device), "dtype": args.dtype}
            key |= {"steps": args.steps, "tiny": args.tiny}
            if any(key.items() <= row.items() for row in rows):
                continue
            row = key | child(args, name, what)
            rows.append(row)
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            print(name, what, {k: v for k, v in row.items() if k not in key}, flush=True)


HEAD = """# At the published models' sizes

`python benchmarks/real_sizes.py --out FOLDER`, then `--page`. Networks have the true shapes and random weights, so that
pictures mean nothing, and what they cost is what the real ones cost. Guidance is on: an image is two rows of a batch,
an edit four.

*Peak* is of the process (on a GPU, of torch) beyond the weights. *Planned* is `Plan.bytes`: what taps take at most,
beyond what the network has without them; *in taps* is what torch's own account of each allocation has there. A plan is
made and priced before the first step, in the milliseconds of *plan*; what reads is priced by
`sfumato.reading.price`. Where a run descends (Attend-and-Excite), the
network keeps what its way back needs; that is in the peak and not in the plan. Null-text is one step of the inversion
with one fit of the empty prompt, and the encoding of the image before it. DiffSeg and DIFT read images that were
encoded before.
"""


def page(rows: list[dict[str, Any]], note: str | None) -> str:
    """docs/real-sizes.md, a table a model and machine."""
    out, last = [HEAD, *([f"\n{note}\n"] if note else [])], None
    order = sorted(rows, key=lambda row: (row["machine"], list(MODELS).index(row["model"]), ROWS.index(row["what"])))
    for row in order:
        group = row["machine"], row["model"], row["dtype"], row["steps"], row["tiny"]
        if group != last:
            model, tiny = MODELS[row["model"]], ", a tenth as wide" if row["tiny"] else ""
            steps = "the first of 50 steps" if row["steps"] == 1 else f"{row['steps']} steps"
            side = TINY if row["tiny"] else model.side
            out.append(f"\n## {model.name}, {side} pixels{tiny}, {row['dtype']}\n\n{row['machine']}; {steps}.\n")
            out.append("| | seconds | peak, MiB | planned, MiB | in taps, MiB | planned / in taps | plan, ms |")
            out.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
            last = group
        out.append(line(row))
    return "\n".join(out) + "\n"


def line(row: dict[str, Any]) -> str:
    """A row of a table."""
    if why := row.get("skipped") or row.get("failed"):
        return f"| {row['what']} | {why} | | | | | |"
    if row["what"] == "load":
        return f"| load: weights of {row['weights_mib']:.0f} MiB | {row['seconds']:.1f} | | | | | |"
    planned, tapped = row.get("plan_mib") or None, row.get("tapped_mib") or None
    figures = [
        (row["seconds"], ".1f"),
        (row["peak_mib"], ".0f"),
        (planned, ".1f"),
        (tapped, ".1f"),
        (planned / tapped if planned and tapped else None, ".2f"),
        (row["plan_ms"] + row.get("price_ms", 0.0) if "plan_ms" in row else None, ".0f"),
    ]
    return f"| {row['what']} | " + " | ".join("" if x is None else f"{x:{form}}" for x, form in figures) + " |"


if __name__ == "__main__":
    main()
