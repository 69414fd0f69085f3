"""Training data: shards of rendered scenes on disk, fresh renders from a GPU, and the shards' latents.

A shard is ``SPLIT-00000.safetensors`` with, per image,

- ``images`` uint8 (n, 3, 128, 128);
- ``thing`` uint8 (n, 128, 128): 0 none, else 1 + index of the thing;
- ``depth`` float16 (n, 64, 64): z-depth at every other pixel in world units, 0 where there is only sky;
- ``mark`` int16 (n, 3): pixels on which each thing's ``mark`` part (face, beak, door, ...) is visible;

and beside it ``SPLIT-00000.jsonl`` with one scene a line. Every geometry is traced once and shaded in four appearances.

Pairs before and after a change are kept alike: ``pairs-00000.safetensors`` with ``images`` uint8 (n, 2, 3, 128, 128),
and ``pairs-00000.jsonl`` with the instruction and both captions.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.io.files import atomic, writable, write_text
from sfumato.stilllife.kinds import KINDS
from sfumato.stilllife.scene import Scene, redress, sample_scene
from sfumato.stilllife.train import DataOptions, Options
from sfumato.stilllife.train.precision import autocast

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from jaxtyping import Float

PER_SHARD = 1024
DRESSES = 4  # appearances a geometry
HELD = ("images", "thing", "depth", "latents")  # what a GPU keeps of all shards, 73 KiB an image
SPLITS = ("train", "val", "pairs")  # drawn from separate seeds


class Batch(TypedDict):
    """b images with their truth; ``images`` lie in [0, 1], the rest is as in a shard."""

    images: Tensor
    thing: Tensor
    depth: Tensor
    mark: Tensor
    scenes: list[Scene]


class Source(Protocol):
    """Where batches come from. The same ``step`` gives the same batch."""

    def batch(self, step: int, size: int) -> Batch: ...


class Shards:
    """The memory-mapped shards of one split in a folder. ``latents`` are there once ``encode_shards`` has made them.

    With a GPU as ``device``, the fields of ``HELD`` are copied there whole when they are first asked for.
    """

    def __init__(self, folder: Path, split: str = "train", seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.device = torch.device(device)
        self._held: dict[str, Tensor] = {}
        self.latents: list[Tensor] = []
        self.files = sorted(Path(folder).glob(f"{split}-*.safetensors"))
        if not self.files:
            how = "python -m sfumato.stilllife.train data"
            raise SfumatoError(f"no {split} shards in {folder}; render them with `{how} --out {folder}`")
        try:
            self._tensors = [load_file(f) for f in self.files]
        except SafetensorError as e:
            raise SfumatoError(f"a damaged shard in {folder} ({e}); remove it and render again") from e
        self._lines = [f.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines() for f in self.files]
        self._ends = np.cumsum([len(t["images"]) for t in self._tensors])
        self.odds: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def images(self, shard: int) -> Tensor:
        """All images of one shard, as stored."""
        return self.field(shard, "images")

    def field(self, shard: int, name: str) -> Tensor:
        """One field of one shard, as stored."""
        return self._tensors[shard][name]

    def prefer(self, odds: Callable[[Scene], float]) -> Shards:
        """Draw each image as often as ``odds`` of its scene says, beside the others. Returns ``self``."""
        found = np.array([odds(Scene.from_json(line)) for lines in self._lines for line in lines])
        self.odds = found / found.sum()
        return self

    def pick(self, step: int, size: int) -> np.ndarray:
        """The image numbers of a step's batch, (size,): draws by (seed, step), uniform or as ``prefer`` was told."""
        rng = np.random.default_rng((self.seed, step))
        return rng.integers(0, len(self), size) if self.odds is None else rng.choice(len(self), size, p=self.odds)

    def _where(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, int(index - (self._ends[shard - 1] if shard else 0))

    def scene(self, index: int) -> Scene:
        return Scene.from_json(self.line(index))

    def line(self, index: int) -> str:
        """What is written of an image: a scene or a pair's words, as JSON."""
        shard, row = self._where(index)
        return self._lines[shard][row]

    def rows(self, name: str, indices: np.ndarray) -> Tensor:
        """One field of the given images, stacked, as stored; of those ``HELD``, on the device."""
        if self.device.type != "cpu" and name in HELD:
            return self.whole(name)[torch.from_numpy(indices).to(self.device)]
        places = [self._where(int(i)) for i in indices]
        return torch.stack([self.latents[s][r] if name == "latents" else self._tensors[s][name][r] for s, r in places])

    def whole(self, name: str) -> Tensor:
        """One field of all images, as stored, on the device."""
        if name not in self._held:
            parts = self.latents if name == "latents" else [t[name] for t in self._tensors]
            self._held[name] = torch.cat([part.to(self.device) for part in parts])
        return self._held[name]

    def take(self, indices: np.ndarray) -> Batch:
        return {
            "images": self.rows("images", indices).float() / 255,
            "thing": self.rows("thing", indices),
            "depth": self.rows("depth", indices),
            "mark": self.rows("mark", indices),
            "scenes": [self.scene(int(i)) for i in indices],
        }

    def batch(self, step: int, size: int) -> Batch:
        return self.take(self.pick(step, size))


@torch.no_grad()
def encode_shards(shards: Shards, vae: AutoencoderKL) -> Shards:
    """Fill ``shards.latents``: float16 (n, 4, 16, 16), or (n, 2, 4, 16, 16) of pairs, as ``latents`` gives them.

    They are kept beside the shards in a folder named by the VAE's weights, so they are made once. Returns ``shards``.
    """
    digest = sha256()
    for key, value in vae.state_dict().items():
        digest.update(key.encode() + value.float().cpu().numpy().tobytes())
    folder = shards.files[0].parent / f"latents-{digest.hexdigest()[:12]}"
    names = [folder / f.name for f in shards.files]
    missing = [i for i, name in enumerate(names) if not name.exists()]
    for i in track(missing, "encoding shards", console=Console(stderr=True), disable=not missing):
        images = shards.images(i)
        parts = [latents(vae, part.to(vae.device).float() / 255) for part in images.flatten(0, -4).split(64)]
        z = torch.cat(parts).half().cpu().unflatten(0, images.shape[:-3])
        with atomic(names[i]) as part:
            save_file({"latents": z.contiguous()}, part)
    shards.latents = [load_file(name)["latents"] for name in names]
    return shards


@torch.no_grad()
def latents(vae: AutoencoderKL, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4 h/8 w/8"]:
    """The scaled latents (their mean, unit variance) of images in [0, 1].

    Channels last: at these few channels a CPU encodes more than twice as many images a second (13.8 and 5.8 ms).
    """
    x = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
    with autocast(images.device):
        z = vae.encode(x).latent_dist.mode()  # pyright: ignore[reportAttributeAccessIssue]
    return z.float() * vae.config["scaling_factor"]


@dataclass(frozen=True)
class Fresh:
    """Scenes rendered on the device as they are asked for: no image is seen twice."""

    device: torch.device
    seed: int = 0

    def batch(self, step: int, size: int) -> Batch:
        rng = np.random.default_rng((self.seed, 1 + SPLITS.index("train"), step))
        parts = [render_batch(rng, n, self.device) for n in _pieces(size, 64 * DRESSES)]
        out: Any = {k: torch.cat([p[k] for p in parts]) for k in ("images", "thing", "depth", "mark")}
        out["scenes"] = [s for p in parts for s in p["scenes"]]
        return out


def source(args: Options, device: torch.device) -> Source:
    """The shards in ``args.data``; without any, fresh renders on a GPU. Raises ``SfumatoError`` with neither."""
    if device.type == "cuda" and not any(args.data.glob("train-*.safetensors")):
        return Fresh(device, args.seed)
    return Shards(args.data, seed=args.seed, device=device)


def held_out(args: Options, device: torch.device, count: int = 256) -> Batch:
    """Images that are not trained on: the first of the ``val`` shards, or renders from another seed on a GPU."""
    if any(args.data.glob("val-*.safetensors")) or device.type != "cuda":
        shards = Shards(args.data, "val")
        return shards.take(np.arange(min(count, len(shards))))
    return Fresh(device, args.seed + 1_000_000).batch(0, count)


def render_batch(rng: np.random.Generator, count: int, device: torch.device | str) -> Batch:
    """Render ``count`` images of new scenes, ``DRESSES`` appearances a geometry."""
    from sfumato.stilllife import render

    bare = [sample_scene(rng) for _ in range(-(-count // DRESSES))]
    dressed = [bare, *([redress(s, rng) for s in bare] for _ in range(DRESSES - 1))]
    buffers = render.trace(bare, device=device)
    images = torch.stack([render.shade(buffers, scenes) for scenes in dressed], 1).flatten(0, 1)
    truth = render.labels(buffers)
    thing, part, depth = truth["thing"], truth["part"], truth["depth"]

    def each(x: Tensor) -> Tensor:
        return x.repeat_interleave(DRESSES, 0)[:count]

    return {
        "images": images[:count],
        "thing": each((thing + 1).to(torch.uint8)),
        "depth": each(depth[:, ::2, ::2].nan_to_num(posinf=0.0).half()),
        "mark": each(marks(bare, thing, part)),
        "scenes": [dressed[d][g] for g in range(len(bare)) for d in range(DRESSES)][:count],
    }


def marks(scenes: list[Scene], thing: Tensor, part: Tensor) -> Tensor:
    """Pixels on which the ``mark`` part of each thing is visible, int16 (n, 3); 0 for kinds without one."""
    out = torch.zeros(len(scenes), Scene.most, dtype=torch.int16)
    for i, scene in enumerate(scenes):
        for j, t in enumerate(scene.things):
            kind = KINDS[t.kind]
            if kind.mark is not None:
                seen = (thing[i] == j) & (part[i] == kind.parts().index(kind.mark))
                out[i, j] = int(seen.sum())
    return out


def pair_batch(rng: np.random.Generator, count: int, device: torch.device | str) -> tuple[Tensor, list[dict[str, Any]]]:
    """Images (count, 2, 3, 128, 128) in [0, 1] before and after a change, and each pair's instruction and captions."""
    from sfumato.stilllife import change

    scenes = [sample_scene(rng) for _ in range(count)]
    changed = [change.counterfactual(s, change.sample_change(s, rng)) for s in scenes]
    images = torch.stack(change.render_pairs(changed, device=str(device)), 1)
    return images, [{"instruction": c.instruction, "captions": c.captions} for c in changed]


def run(args: DataOptions) -> None:
    render_shards(args.out, args.images, args.seed, args.processes)
    render_shards(args.out, args.val, args.seed, args.processes, split="val")
    render_shards(args.out, args.pairs, args.seed, args.processes, split="pairs")


def render_shards(folder: Path, images: int, seed: int = 0, processes: int = 2, split: str = "train") -> None:
    """Render shards of ``PER_SHARD`` images until ``folder`` holds at least ``images`` of the split.

    Existing shards are skipped; the same seed gives the same shards whatever the number of processes.
    """
    folder = writable(folder)
    wanted = [(folder / f"{split}-{k:05d}.safetensors", seed, split, k) for k in range(-(-images // PER_SHARD))]
    missing = [job for job in wanted if not job[0].exists()]
    _each_process(_render_shard, missing, processes, f"rendering {split} shards")


def _each_process(work: Any, jobs: list[Any], processes: int, words: str) -> None:
    """Run ``work(job)`` for all jobs in processes of one thread each. Ctrl-C ends them all; whole files stay."""
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(processes, len(jobs)), _quiet_worker) as pool:
        done: Iterator[Any] = pool.imap_unordered(work, jobs)
        for _ in track(done, words, total=len(jobs), console=Console(stderr=True)):
            pass


def _quiet_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    torch.set_num_threads(1)


def _render_shard(job: tuple[Path, int, str, int]) -> None:
    path, seed, split, number = job
    rng = np.random.default_rng((seed, SPLITS.index(split), number))
    if split == "pairs":
        write_pairs(path, [pair_batch(rng, n, "cpu") for n in _pieces(PER_SHARD, 16)])
    else:
        write_shard(path, [render_batch(rng, n, "cpu") for n in _pieces(PER_SHARD, 8 * DRESSES)])


def write_shard(path: Path, parts: list[Batch]) -> None:
    """Write batches as one shard."""
    truth = {k: torch.cat([p[k] for p in parts]) for k in ("thing", "depth", "mark")}
    lines = [s.to_json() for p in parts for s in p["scenes"]]
    _write(path, lines, {"images": _bytes([p["images"] for p in parts]), **truth})


def write_pairs(path: Path, parts: list[tuple[Tensor, list[dict[str, Any]]]]) -> None:
    """Write what ``pair_batch`` gave as one shard."""
    _write(path, [json.dumps(line) for _, p in parts for line in p], {"images": _bytes([x for x, _ in parts])})


def _bytes(images: list[Tensor]) -> Tensor:
    return (torch.cat(images).clamp(0, 1) * 255).round().to(torch.uint8)


def _write(path: Path, lines: list[str], tensors: dict[str, Tensor]) -> None:
    """The tensors come last, so a shard that exists is whole."""
    write_text(path.with_suffix(".jsonl"), "".join(line + "\n" for line in lines))
    with atomic(path) as part:
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, part)


def _pieces(total: int, most: int) -> list[int]:
    return [min(most, total - i) for i in range(0, total, most)]
