"""Everything in one go, within a number of minutes: renders, every network, a comparison, a folder to take home.

Meant for a machine that is had for minutes and given back. Time that one stage does not use goes to those that follow;
a stage that fails, or that there is no time for, is left out with its reason, and the network that ships stands in.
Each trainer runs in this process as its own command would. Where memory is short, the batch is halved and the stage
goes on. What is finished is packed before it is compared, so that a comparison cut short costs no network.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sfumato.errors import SfumatoError, out_of_memory, unknown
from sfumato.io.files import writable, write_text
from sfumato.io.terminal import note, print_table, quiet
from sfumato.learning.checkpoint import reached
from sfumato.media import pictures
from sfumato.stilllife import weights
from sfumato.stilllife.train import AllOptions, Options, data, gpu, loop

SHARES = {
    "render": 0.12,
    "vae": 0.16,
    "words": 0.06,
    "clip": 0.07,
    "oracle": 0.06,
    "unet": 0.34,
    "instruct": 0.06,
    "depth": 0.06,
    "bench": 0.07,
}
BATCHES = {  # on a CPU, on a GPU
    "vae": (16, 128),
    "words": (256, 512),
    "clip": (128, 512),
    "oracle": (32, 128),
    "unet": (64, 512),
    "instruct": (16, 256),
    "depth": (16, 256),
}
FEWEST = 5 / 60  # minutes: a stage with less is skipped
MOST = 128 * data.PER_SHARD  # images rendered, 9 GiB
RELATIVES = ("instruct", "depth")
"""Stages that can do without their own weights."""
HELD_OUT = 512
PAIRS = 16  # images to a pair: two traces of its own make a pair eight times as dear
FIRST = {"val": 1 / 8, "train": 1 / 2, "pairs": 3 / 4}  # of the time: when the first shard must be done
AT_ONCE = {"cpu": (8, 16), "cuda": (256, 256)}  # geometries, pairs

COMPILING = 1.25  # minutes, as guessed for the UNet and a GPU's 16 processors
PROBE = 4  # paintings that tell how many there is time for

Clock = Callable[[], float]


@dataclass
class Row:
    """What came of a stage."""

    stage: str
    state: str = "skipped"  # finished, kept (of an earlier run), skipped, failed or stopped
    minutes: float = 0.0
    steps: int | None = None
    samples: int | None = None
    batch: int | None = None
    loss: float | None = None
    why: str = ""

    @property
    def done(self) -> bool:
        return self.state in ("finished", "kept")


@dataclass
class Budget:
    """Shares out what is left of ``minutes`` among the stages that are still to come, in the order of ``shares``."""

    minutes: float
    shares: Mapping[str, float]
    clock: Clock
    lost: float = 0.0
    """The most minutes that a stage has taken beyond those it was told to train."""
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def used(self) -> float:
        return (self.clock() - self.began) / 60

    def share(self, stage: str) -> float:
        """The minutes for a stage, loading and saving included; none when its share is 0."""
        names = list(self.shares)
        ahead = sum(self.shares[k] for k in names[names.index(stage) :])
        return max(0.0, self.minutes - self.used()) * self.shares[stage] / ahead if ahead else 0.0

    def training(self, stage: str, setup: float = 0.0) -> float:
        """The part of them to train in: what a stage has taken to load and save, or ``setup``, is kept, up to half."""
        whole = self.share(stage)
        return max(whole - max(self.lost, setup), whole / 2)


def read_shares(asked: Sequence[str], start: str = "shipped") -> dict[str, float]:
    """The shares of the time, with those ``asked`` for (as "unet=0.5") in the place of the defaults."""
    out = dict(SHARES)
    for text in asked:
        name, _, value = text.partition("=")
        if name not in SHARES:
            raise unknown("stage", name, SHARES)
        try:
            out[name] = float(value)
        except ValueError:
            out[name] = -1.0
        if not 0 <= out[name] < float("inf"):
            raise SfumatoError(f"a share is STAGE=NUMBER with a number from 0 on, as in unet=0.5, not {text!r}")
    if start == "shipped":
        out["words"] = 0.0  # the text encoder is there, and the UNet knows it
    return out


def run(args: AllOptions, clock: Clock = time.monotonic) -> None:
    """Run every stage; see ``AllOptions``. Raises ``SfumatoError`` at the end if a stage failed by a fault of ours."""
    Everything(args, clock).run()


class Everything:
    """One run: its time, its place and what has come of it so far."""

    def __init__(self, args: AllOptions, clock: Clock = time.monotonic) -> None:
        self.args = args
        self.budget = Budget(args.minutes, read_shares(args.shares, args.start), clock)
        self.rows: list[Row] = []
        self.bench: dict[str, dict[str, float]] = {}
        self.painted: dict[str, torch.Tensor] = {}
        self.packed: list[Path] = []
        self.remarks: list[str] = []
        self.out = args.out
        kept = self._earlier()
        if kept and not args.resume:
            raise SfumatoError(f"{self.out} holds a run; go on with --resume, or give another --out, or remove it")
        self.kept = {
            k["stage"]: Row(**{**k, "state": "kept"})
            for k in kept
            if k["state"] in ("finished", "kept") and k["stage"] in BATCHES and self._final(k["stage"]).is_dir()
        }
        writable(self.out)
        quiet()
        self.device = loop.start(self._options("render", 1.0, False, 1))
        gpu.prepare(self.device)

    def run(self) -> None:
        stages: dict[str, Callable[[Row], None]] = {"render": self._render, "bench": self._bench}
        for stage in SHARES:
            row = Row(stage)
            self.rows.append(row)
            if stage == "bench":
                self._pack()
            self._stage(row, stages.get(stage, self._train))
            self._tell()
        self._sheet()
        self._tell()
        self._table()
        if failed := [f"{r.stage} ({r.why})" for r in self.rows if r.state == "failed"]:
            raise SfumatoError(f"failed: {'; '.join(failed)}; see {self.out}/*/traceback.txt")

    # One stage

    def _stage(self, row: Row, work: Callable[[Row], None]) -> None:
        """Do a stage, or say why not."""
        stage = row.stage
        if stage in self.kept:
            vars(row).update(vars(self.kept[stage]))
            return
        if self.budget.shares[stage] == 0:
            given = stage == "words" and self.args.start == "shipped"
            row.why = "the text encoder that ships stays" if given else "its share of the time is 0"
            return
        if self.args.steps is None and self.budget.share(stage) < FEWEST:
            row.why = f"no time: {60 * self.budget.share(stage):.0f} s are left for it"
            return
        note(f"{stage}: {self.budget.share(stage):.2f} of {self.args.minutes - self.budget.used():.2f} minutes left")
        began = self.budget.used()
        try:
            work(row)
            row.state = "finished"
        except KeyboardInterrupt as e:
            row.state, row.why = "stopped", "interrupted"
            row.minutes = self.budget.used() - began
            self._tell()
            raise KeyboardInterrupt(f"stopped in {stage}; go on with --resume") from e
        except SfumatoError as e:
            row.why = str(e)
        except ModuleNotFoundError as e:
            row.why = f"this needs {e.name}"
        except Exception as e:  # the minutes may be lent: a fault in one stage must not cost the others
            if out_of_memory(e):
                row.why = "out of memory" + (f" at a batch of {row.batch}" if row.batch else "")
            else:
                row.state, row.why = "failed", f"{type(e).__name__}: {_line(e)}"
                write_text(self.out / stage / "traceback.txt", traceback.format_exc())
        row.minutes = self.budget.used() - began
        if not row.done:
            note(f"{stage} {row.state}: {row.why}")
            shutil.rmtree(self.out / stage / "final", ignore_errors=True)

    def _train(self, row: Row) -> None:
        """Train one network in its share of the time."""
        stage, args = row.stage, self.args
        checkpoint = self.out / stage / "checkpoint.safetensors"
        compiles = stage == "unet" and args.compile and self.device.type == "cuda"
        minutes, began = self.budget.training(stage, COMPILING if compiles else 0.0), self.budget.used()
        row.batch, row.samples, counted = args.batch or BATCHES[stage][self.device.type == "cuda"], 0, 0
        resume, work = args.resume, trainer(stage)
        if args.start == "shipped" and self._from_unet(stage):
            row.why = "none here, trained from the UNet"
        while True:
            self._free()
            rest = max(minutes - (self.budget.used() - began), FEWEST)
            before = reached(checkpoint)[1] / 60 if resume else 0.0
            try:
                work(self._options(stage, before + rest, resume, row.batch))
                break
            except (RuntimeError, MemoryError) as e:
                if row.batch == 1 or not out_of_memory(e):
                    raise
            step, _ = reached(checkpoint)
            row.samples, counted = row.samples + (step - counted) * row.batch, step
            row.batch //= 2
            resume = True
            note(f"{stage}: out of memory; goes on with a batch of {row.batch}")
        last = loop.read_log(self.out / stage)[-1]
        row.steps, row.loss = int(last["step"]), last["loss"]
        row.samples += (row.steps - counted) * row.batch
        if args.steps is None:
            self.budget.lost = max(self.budget.lost, self.budget.used() - began - minutes)

    def _free(self) -> None:
        """Give back the memory of networks that nobody needs any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _options(self, stage: str, minutes: float, resume: bool, batch: int) -> Options:
        args, nowhere = self.args, self.out / "shipped" / "none"
        return Options(
            minutes=minutes,
            steps=args.steps,
            resume=resume,
            out=self.out / stage,
            data=args.data,
            device=args.device,
            seed=args.seed,
            batch=batch,
            threads=args.threads,
            captions=args.captions,
            compile=args.compile,
            init=self._begin(stage),
            clip=self._final("clip") if self._fits("clip", stage) else nowhere,
            vae=self._final("vae") if self._fits("vae", stage) else nowhere,
            unet=self._final("unet") if self._done("unet") else nowhere,
            report=self.out / "reports",
        )

    def _begin(self, stage: str) -> Path | None:
        """What a network starts from. Raises ``SfumatoError`` where that is missing."""
        if stage not in BATCHES:
            return None
        if self.args.start == "nothing":
            if stage != "clip":
                return None
            if not self._done("words"):
                raise SfumatoError("it starts from the text half, which `words` did not finish")
            return self._final("words")
        if self._from_unet(stage):
            return None
        if stage in ("oracle", "instruct"):
            file = weights.path(f"{stage}.safetensors")
            return file if stage == "instruct" else file.parent
        folder = self.out / "shipped" / stage
        if not folder.is_dir():
            part = folder.with_name(f".{stage}")
            weights.module(stage).save_pretrained(part)
            part.rename(folder)
        return folder

    def _from_unet(self, stage: str) -> bool:
        """Does a relative start from the UNet, as when it was first trained, since its own file stayed at home?"""
        return stage in RELATIVES and not (weights.folder() / f"{stage}.safetensors").is_file()

    def _final(self, stage: str) -> Path:
        return self.out / stage / "final"

    def _done(self, stage: str) -> bool:
        return any(r.stage == stage and r.done for r in self.rows)

    def _fits(self, stage: str, reader: str = "instruct") -> bool:
        """Whether a network is finished and goes with the UNet that ``reader`` works on: without a UNet that learnt on
        it, a new VAE, or a text encoder from nothing, fits none."""
        alone = stage == "clip" and self.args.start == "shipped"  # its text half has stayed
        changes = stage in ("vae", "clip") and not alone
        return self._done(stage) and (not changes or reader in ("unet", "oracle") or self._done("unet"))

    # The stages that train nothing

    def _render(self, row: Row) -> None:
        """Render what the folder of shards lacks: images to train on and to hold out, pairs before and after."""
        args, began, minutes = self.args, self.budget.used(), self.budget.share("render")
        train = args.images or MOST
        wanted = {"train": train, "val": min(HELD_OUT, train), "pairs": max(1, train // PAIRS)}
        found = [k for k in wanted if any(args.data.glob(f"{k}-*.safetensors"))]
        writable(args.data)

        def late(part: float = 1.0) -> bool:
            return args.steps is None and self.budget.used() - began > part * minutes

        drawn = Renderer(self.device, args.seed)
        counts = dict.fromkeys(wanted, 0)
        for split, number, count in shards(wanted):
            if split not in found and not late():
                path, part = args.data / f"{split}-{number:05d}.safetensors", FIRST[split] if number == 0 else 1.0
                counts[split] += drawn.shard(path, split, number, count, partial(late, part))
        row.samples = sum(counts.values())
        counted = [f"{k}: found" if k in found else f"{k}: {v}" for k, v in counts.items()]
        row.why = ", ".join(counted)

    def _bench(self, row: Row) -> None:
        """Compare the UNet with the one that ships: its error on held-out images, and what it paints."""
        from diffusers import UNet2DConditionModel

        from sfumato.stilllife.oracle import Oracle
        from sfumato.stilllife.train.judge import ASKED, Judge
        from sfumato.stilllife.train.unet import load_frozen
        from sfumato.stilllife.train.vae import finished

        if not self._done("unet"):
            raise SfumatoError("there is no new UNet to compare")
        new = self._options("bench", 1.0, False, 1)
        nowhere = self.out / "shipped" / "none"
        old = Options(vae=nowhere, clip=nowhere, unet=nowhere)
        seen = data.held_out(new, self.device, 256 if self.device.type == "cuda" else 64)
        contenders = {"shipped": old, "trained": new}
        try:
            oracle = Oracle.load(device=self.device)
        except SfumatoError:  # without the weights that ship, from nothing
            oracle = Oracle.load(self._final("oracle") / "oracle.safetensors", self.device)
            del contenders["shipped"]
        judges: dict[str, Judge] = {}
        unets: dict[str, Any] = {}
        for name, given in contenders.items():
            judges[name] = Judge(load_frozen(given, self.device), oracle, seen, self.args.n)
            unets[name] = finished(UNet2DConditionModel, given.unet, "unet").to(self.device).eval()
            self.bench[name] = judges[name].errors(unets[name])
        n = self.args.n
        if self.args.steps is None:
            began = self.budget.used()
            replace(judges["trained"], n=PROBE).paintings(unets["trained"], ASKED[:1])
            each = (self.budget.used() - began) / PROBE
            n = min(n, int(0.8 * self.budget.share("bench") / (each * len(ASKED) * len(unets)) if each else n))
        if n < 1:
            row.why = "no time for paintings"
            return
        for name, judge in judges.items():
            figures, shown = replace(judge, n=n).paintings(unets[name])
            self.bench[name] |= figures
            self.painted[name] = shown["single"][:8]
        row.samples = n * len(ASKED) * len(unets)

    # What comes of it

    def _pack(self) -> None:
        """Write every finished network, as it would ship, into few files."""
        from sfumato.stilllife.train import ship

        found: dict[str, ship.Network] = {}
        for stage in ship.SHIPPED:
            if not self._done(stage):
                if self._done("unet") and stage in RELATIVES:
                    self._remark(f"{stage}: the one that ships was made for another UNet; train it before you ship")
            elif not self._fits(stage):
                self._remark(f"{stage}: left out, because no UNet has learnt on it")
            else:
                try:
                    found |= ship.collect(self.out, names=(stage,))
                except SfumatoError as e:
                    self._remark(f"{stage}: left out, {e}")
        try:
            self.packed = ship.pack(found, self.out / "ship") if found else []
        except SfumatoError as e:
            self._remark(f"nothing is packed: {e}")

    def _remark(self, text: str) -> None:
        note(text)
        self.remarks.append(text)

    def _sheet(self) -> None:
        """The last previews and the bench's paintings, one below the other."""
        rows = [pictures.sheet(images, 8) for images in self.painted.values()]
        for stage in ("unet", "vae"):
            if self._done(stage) and (found := sorted((self.out / stage).glob("preview-*.png"))):
                with Image.open(found[-1]) as image:
                    rows.append(image.convert("RGB"))
        if not rows:
            return
        sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height + 8 for r in rows)), "white")
        top = 0
        for row in rows:
            sheet.paste(row, (0, top))
            top += row.height + 8
        pictures.write(sheet, self.out / "ship" / "previews.png")

    def _tell(self) -> None:
        """Write the report so far, beside the runs and beside what is packed."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        report = {
            "minutes": self.args.minutes,
            "used": round(self.budget.used(), 3),
            "device": name,
            "torch": torch.__version__,
            "start": self.args.start,
            "seed": self.args.seed,
            "shares": self.budget.shares,
            "stages": [asdict(r) for r in self.rows],
            "bench": {who: {k: v if math.isfinite(v) else None for k, v in f.items()} for who, f in self.bench.items()},
            "packed": [f.name for f in self.packed],
            "remarks": self.remarks,
        }
        text = json.dumps(report, indent=1) + "\n"
        write_text(self.out / "report.json", text)
        if self.packed:
            write_text(self.out / "ship" / "report.json", text)

    def _table(self) -> None:
        def cell(value: Any) -> Any:
            return "" if value is None else f"{value:.4g}" if isinstance(value, float) else value

        print_table([{k: cell(v) for k, v in asdict(r).items()} for r in self.rows])
        if self.bench:
            names = next(reversed(self.bench.values()))
            print_table([{"unet": k} | {who: cell(f.get(k)) for who, f in self.bench.items()} for k in names])
        packed = f"{len(self.packed)} files in {self.out / 'ship'}" if self.packed else "nothing"
        print(f"{self.budget.used():.1f} of {self.args.minutes:g} minutes; packed: {packed}")

    def _earlier(self) -> list[dict[str, Any]]:
        """The rows of an earlier run in the same place."""
        try:
            return json.loads((self.out / "report.json").read_text(encoding="utf-8"))["stages"]
        except (OSError, ValueError, KeyError):
            return [{"stage": "", "state": ""} for _ in self.out.glob("*/checkpoint.safetensors")]


class Renderer:
    """Renders shards in this process, as many images at once as memory holds."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device, self.seed = device, seed
        geometries, pairs = AT_ONCE[device.type]
        self.at_once = {"train": geometries * data.DRESSES, "val": geometries * data.DRESSES, "pairs": pairs}

    def shard(self, path: Path, split: str, number: int, count: int, late: Callable[[], bool]) -> int:
        """Render a shard, a shorter one when it is ``late``; the number of its images or pairs."""
        rng = np.random.default_rng((self.seed, data.SPLITS.index(split), number))
        parts: list[Any] = []
        have = 0
        while have < count and not (parts and late()):
            size = min(count - have, self.at_once[split])
            try:
                parts.append((data.pair_batch if split == "pairs" else data.render_batch)(rng, size, self.device))
                have += size
                continue
            except (RuntimeError, MemoryError) as e:
                if size == 1 or not out_of_memory(e):
                    raise
            self.at_once[split] = size // 2
            note(f"rendering {split}: out of memory; goes on with {size // 2} at once")
            gc.collect()
        (data.write_pairs if split == "pairs" else data.write_shard)(path, parts)
        return have


def shards(wanted: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
    """The shards to render, as (split, number, images), in the order in which time should run out on them."""

    def of(split: str, number: int) -> Iterator[tuple[str, int, int]]:
        if (left := wanted[split] - number * data.PER_SHARD) > 0:
            yield split, number, min(left, data.PER_SHARD)

    for number in range(-(-wanted["val"] // data.PER_SHARD)):
        yield from of("val", number)
    for number in range(-(-wanted["train"] // data.PER_SHARD)):
        yield from of("train", number)
        if number % PAIRS == 0:
            yield from of("pairs", number // PAIRS)


def trainer(stage: str) -> Callable[[Options], None]:
    """What trains a network."""
    return importlib.import_module(f"sfumato.stilllife.train.{stage}").run


def _line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or ["no reason given"])[0]
