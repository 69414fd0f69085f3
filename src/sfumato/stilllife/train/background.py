"""A run of the UNet beside other work, from one day to the next: ``python -m sfumato.stilllife.train background``.

``start`` leaves a supervisor behind, at the lowest priority, that renders images and trains on them in turns: a trainer
reads which shards there are when it starts. All that it knows lies in one folder, so it may be killed at any time, and
``start`` goes on from there. The rate stays constant, because nobody knows when such a run will end; the averaged
weights are what is judged and what ships.

In the folder: ``data/`` (shards), ``init/`` (what it began from), ``unet/`` (checkpoint, log, previews),
``state.json``, ``log.txt`` (what the supervisor and those whom it started said).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_text
from sfumato.io.terminal import note, print_json, print_table, quiet
from sfumato.learning.checkpoint import reached
from sfumato.stilllife.train import Options

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from torch import Tensor

    from sfumato.stilllife.train.judge import Judge, Verdict

MODULE = "sfumato.stilllife.train.background"
HOW = "python -m sfumato.stilllife.train background"
PER_SHARD = 1024  # as in data.py, which is not read for it: it imports torch
SHARD = 78 * 2**20  # bytes on disk of a shard and its latents
CHECKPOINT = 200 * 2**20  # bytes; while one is written there are two
MORE = 4 * PER_SHARD  # images rendered between two slices
HELD_OUT = 512  # images of the held-out error
PREVIEWS = 30  # the newest are kept
BASE = ("unet.safetensors", "vae.safetensors", "clip.safetensors")  # shipped files that the run stands on
PATIENCE = 600.0  # seconds that a child has to save; at the lowest priority a step may take long
LATELY = 10  # records of the log

State = dict[str, Any]


def _place() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfumato" / "background"


@dataclass(frozen=True)
class PlaceOptions:
    """Which background run."""

    place: Path = field(default_factory=_place)
    """Folder of the run."""


@dataclass(frozen=True)
class StartOptions(PlaceOptions):
    """How a background run goes on."""

    images: int = 48 * PER_SHARD
    """Images to render in all; 76 MiB on disk for each 1024."""
    first: int = 8 * PER_SHARD
    """Images to render before training begins."""
    processes: int = os.cpu_count() or 1
    """Processes of one thread each."""
    slice: float = 30.0
    """Minutes of training between two turns of rendering."""
    rate: float = 2e-4
    """Learning rate; it does not fall."""
    batch: int = 32
    """Images a step and process."""
    weighting: Literal["min-snr", "even"] | None = None
    """How noise levels weigh in the loss [default: the network's own]."""
    seed: int = 1
    """Of the images and of training; another one than that of the shipped weights shows it other images."""
    afresh: bool = False
    """Begin from the shipped weights, not from the last checkpoint, which is kept as unet.before."""


@dataclass(frozen=True)
class StatusOptions(PlaceOptions):
    """What to tell of a background run."""

    judge: bool = False
    """Measure the held-out error of its averaged weights and of the shipped ones too: a minute or two."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class ShipOptions(PlaceOptions):
    """How to judge a background run."""

    n: int = 60
    """Paintings of each class of prompts."""
    dry_run: bool = False
    """Judge only; write nothing."""


# What is on disk


def read_state(place: Path) -> State:
    """What is known of the run in ``place``; empty when there is none. ``SfumatoError`` when it cannot be read."""
    file = place / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise SfumatoError(f"{file} cannot be read ({e}); remove it: shards and checkpoint stay, `{HOW} start`") from e
    return state


def update(place: Path, **changes: Any) -> State:
    """Write ``changes`` into the state of the run, and return it."""
    state = {**read_state(place), **changes}
    write_text(place / "state.json", json.dumps(state, indent=1) + "\n")
    return state


def progress(place: Path) -> tuple[int, float]:
    """Step and seconds of training of the checkpoint; zeros without one. Only its header is read."""
    return reached(place / "unet" / "checkpoint.safetensors")


def rendered(place: Path, split: str = "train") -> int:
    """Images in the shards of a split."""
    return PER_SHARD * len(list((place / "data").glob(f"{split}-*.safetensors")))


def records(place: Path) -> list[dict[str, float]]:
    """The records of the run's log, oldest first. As ``loop.read_log``, which would import torch."""
    log = place / "unet" / "log.jsonl"
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def _previews(place: Path) -> list[Path]:
    found = (place / "unet").glob("preview-*.png")
    return sorted(found, key=lambda p: int(p.stem.rpartition("-")[2]))


def runs(state: Mapping[str, Any]) -> bool:
    """Does the process that ``state`` tells of go on? Its number may have gone to another program since."""
    pid, asked = state.get("pid"), state.get("command", [])[1:]  # a launcher may call the interpreter otherwise
    if not pid or not asked:
        return False
    if Path("/proc/self/cmdline").exists():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape")
        except OSError:
            return False
        return line.split("\0")[1:-1] == asked
    try:
        line = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True).stdout
    except OSError:
        return False
    return line.strip().endswith(" ".join(asked))


# The supervisor


def lowest() -> None:
    """Give this process, and all that it starts, the lowest priority that there is."""
    os.nice(19)
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with suppress(OSError):  # where sessions share the cores evenly, a nice value counts only inside of its own
            Path("/proc/self/autogroup").write_text("19", encoding="ascii")


class Runs(Protocol):
    """Runs commands side by side to their end; ``stopping`` once it was told to stop."""

    stopping: bool

    def __call__(self, commands: Sequence[Sequence[str]]) -> int: ...


class Crew:
    """Children of this process. SIGTERM and SIGINT stop them: they save what they have, and nothing new begins.

    They meet as those of ``torchrun`` do. That kills processes that have not saved within thirty seconds, in which one
    of the lowest priority may not have ended its step.
    """

    def __init__(self) -> None:
        self.stopping = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: Any) -> None:
        self.stopping = True

    def __call__(self, commands: Sequence[Sequence[str]]) -> int:
        """Run them; the code of the first that failed, or 0. When one fails, the others are told to stop."""
        children: list[subprocess.Popen[bytes]] = []
        stopped, failed = None, 0
        tied, meeting = _tied(), _meeting(len(commands))
        try:
            for rank, command in enumerate(commands):
                env = {**os.environ, "OMP_NUM_THREADS": "1", **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                children.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, preexec_fn=tied))
            while alive := [c for c in children if c.poll() is None]:
                failed = failed or next((c.returncode for c in children if c.returncode), 0)
                if stopped is None and (self.stopping or failed):
                    stopped = time.monotonic()
                    for child in alive:  # not SIGTERM: rendering ends its own workers on Ctrl-C
                        child.send_signal(signal.SIGINT)
                if stopped is not None and time.monotonic() - stopped > PATIENCE:
                    break
                time.sleep(0.2)
        finally:
            for child in children:
                child.kill()
                child.wait()
        return failed or next((c.returncode for c in children if c.returncode), 0)


def _meeting(world: int) -> dict[str, str]:
    """Where processes that train together meet, as torch reads it from the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}


def _tied() -> Callable[[], None] | None:
    """On Linux, what makes a child stop, and save, when this process is killed: else it would train beside the next."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, int(signal.SIGINT))  # PR_SET_PDEATHSIG


def turns(place: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """What is to be done next, and the commands that do it, as what is on disk asks for; without an end."""
    state = read_state(place)
    if rendered(place) < state["first"] or not rendered(place, "val"):
        yield "rendering", [_rendering(place, state, state["first"])]
    if "judged" not in state or not (place / "init").is_dir():
        yield "judging what it begins from", [[sys.executable, "-m", MODULE, "begin", str(place)]]
    while True:
        yield "training", [_training(place, state)] * state["processes"]
        have = rendered(place)
        if have < state["images"]:
            yield "rendering", [_rendering(place, state, min(state["images"], have + MORE))]


def _rendering(place: Path, state: State, images: int) -> list[str]:
    options = {"images": images, "val": PER_SHARD, "out": place / "data"}
    return _trainer("data", {**options, "seed": state["seed"], "processes": state["processes"]})


def _training(place: Path, state: State) -> list[str]:
    """A slice: ``minutes`` are those of the whole run, and the shipped VAE and CLIP are taken wherever this runs."""
    options = {
        "minutes": f"{progress(place)[1] / 60 + state['slice']:.4f}",
        "cooldown": 0.0,
        "rate": state["rate"],
        "batch": state["batch"],
        "out": place / "unet",
        "data": place / "data",
        "init": place / "init",
        "vae": place / "none",
        "clip": place / "none",
        "report": place / "unet",
        "device": "cpu",
        "threads": 1,
        "seed": state["seed"],
        **({"weighting": state["weighting"]} if state["weighting"] else {}),
    }
    return [*_trainer("unet", options), "--resume"]


def _trainer(name: str, options: Mapping[str, object]) -> list[str]:
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "sfumato.stilllife.train", name, *words]


def supervise(place: Path, crew: Runs) -> int:
    """Do one turn after the other until told to stop (0), or until one fails (1): a failure would only come again."""
    for what, commands in turns(place):
        if crew.stopping:
            break
        before, used = progress(place)[0], _used()
        _say(f"{what}: {' '.join(commands[0])}" + (f" ({len(commands)} times)" if len(commands) > 1 else ""))
        code = crew(commands)
        update(place, cpu_seconds=read_state(place).get("cpu_seconds", 0.0) + _used() - used)
        if crew.stopping:
            break
        if code:
            return _end(place, f"{what} failed with code {code}", 1)
        if what == "training":
            if progress(place)[0] <= before:
                return _end(place, f"a slice of training made no step after step {before}", 1)
            for old in _previews(place)[:-PREVIEWS]:
                old.unlink()
    return _end(place, f"stopped at step {progress(place)[0]}", 0)


def _end(place: Path, words: str, code: int) -> int:
    update(place, ended=words)
    _say(words)
    return code


def _say(words: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {words}", flush=True)


def _used() -> float:
    """Processor seconds of all children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def begin(place: Path) -> None:
    """Keep the shipped UNet as what the run begins from, and judge it, before anything is trained."""
    quiet()
    from diffusers import UNet2DConditionModel

    from sfumato.stilllife import weights

    init = place / "init"
    if not init.is_dir():
        part = place / ".init"
        shutil.rmtree(part, ignore_errors=True)
        base = _shipped()
        weights.module("unet").save_pretrained(part)
        part.rename(init)
        update(place, base=base)
    update(place, judged=make_judge(place, 0).errors(UNet2DConditionModel.from_pretrained(init)))


def _shipped() -> dict[str, str]:
    """SHA-256 of the shipped files that a run stands on."""
    from sfumato.stilllife import weights

    listed = weights.manifest()
    return {file: listed[file]["sha256"] for file in BASE if file in listed}


# Commands


def start(args: StartOptions) -> None:
    """Start a run at the lowest priority, or go on with the one on disk; it goes on when this returns."""
    if os.name == "nt":
        raise SfumatoError(
            "a background run saves when it gets SIGTERM, which Windows does not have; use WSL, or "
            "`python -m sfumato.stilllife.train unet --cooldown 0 --resume` in a window of its own"
        )
    for name in ("images", "first", "processes", "slice", "rate", "batch"):
        if getattr(args, name) <= 0:
            raise SfumatoError(f"--{name} must be more than 0, got {getattr(args, name)}")
    place = writable(args.place.expanduser()).resolve()
    state = read_state(place)
    if runs(state):
        raise SfumatoError(
            f"a background run goes on in {place} (process {state['pid']}, since {_when(state['started'])}); "
            f"see `{HOW} status`, or `{HOW} stop` first"
        )
    check_room(place, args.images)
    if args.afresh:
        state = _afresh(place)
    elif changed := [file for file, digest in _shipped().items() if state.get("base", {}).get(file, digest) != digest]:
        note(
            f"{', '.join(changed)}: what ships is not what this run began from; it goes on with its own UNet and the "
            f"VAE and CLIP that ship; --afresh begins from what ships"
        )
    step, now = progress(place)[0], time.time()
    parts = state.get("parts", [])
    if not parts or parts[-1][1] != args.batch * args.processes:
        parts = [*parts, [step, args.batch * args.processes]]
    keep = ("images", "processes", "slice", "rate", "batch", "weighting", "seed")
    command = supervisor(place)
    update(
        place,
        **{key: getattr(args, key) for key in keep},
        first=min(args.first, args.images),
        began=state.get("began", now),
        started=now,
        parts=parts,
        command=command,
        pid=None,
        ended=None,
    )
    log = place / "log.txt"
    with log.open("ab") as out:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    update(place, pid=child.pid)
    with suppress(subprocess.TimeoutExpired):
        raise SfumatoError(f"it ended at once, with code {child.wait(timeout=1)}; see {log}")
    where = f"from step {step}" if step else "from the weights that ship"
    print(f"started {where} in {place}: process {child.pid}, {args.processes} to train; `{HOW} status` tells how it is")


def supervisor(place: Path) -> list[str]:
    """The command line of the supervisor, by which it is known again."""
    return [sys.executable, "-m", MODULE, "supervise", str(place)]


def check_room(place: Path, images: int) -> None:
    """Raise ``SfumatoError`` unless the disk has room for what a run of so many images will write."""
    missing = max(0, math.ceil(images / PER_SHARD) - rendered(place) // PER_SHARD)
    needed, free = missing * SHARD + 2 * CHECKPOINT, shutil.disk_usage(place).free
    if needed > free:
        raise SfumatoError(
            f"{images} images and the checkpoints need {needed / 2**30:.1f} GiB more, and the disk of {place} has "
            f"{free / 2**30:.1f}; give fewer --images, or another --place"
        )


def _afresh(place: Path) -> State:
    """Put the checkpoint away and forget what the run began from; shards stay."""
    old = place / "unet.before"
    if (place / "unet").is_dir():
        shutil.rmtree(old, ignore_errors=True)
        (place / "unet").rename(old)
    shutil.rmtree(place / "init", ignore_errors=True)
    (place / "state.json").unlink(missing_ok=True)
    return {}


def status(args: StatusOptions) -> None:
    """Tell whether the run goes on and what it has gained since it began."""
    place, state = _known(args.place)
    found = figures(place, state)
    if args.judge:
        quiet()
        judge = make_judge(place, 0)
        from sfumato.stilllife import weights

        found["error"] = {
            "begun": state["judged"]["error"] if "judged" in state else None,
            "shipped": judge.errors(weights.module("unet"))["error"],
            "run": judge.errors(averaged(place))["error"],
        }
    if args.json:
        print_json(found)
        return
    if found["running"]:
        print(f"running: process {found['pid']}, since {_when(state['started'])}")
    else:
        print(f"not running: {found['ended']}")
    print(f"began {_when(state['began'])}; {found['images']} of {state['images']} images rendered")
    print(
        f"step {found['step']}: {found['samples']} samples, {found['samples_per_second'] or 0:.1f} a second lately; "
        f"{found['minutes']:.1f} minutes of training, {found['processor_minutes']:.1f} of processors to the last turn"
    )
    if (noise := found["noise"]) is not None:
        first, last, part = noise["first"], noise["last"], noise["records"]
        print(f"noise loss: {first:.5f} (first {part} records) to {last:.5f} (last {part}): {last / first - 1:+.2%}")
    for name, error in found.get("error", {"begun": found["begun_error"]}).items():
        if error is not None:
            print(f"held-out error of {_WHOSE[name]}: {error:.5f}")
    if found["shipped"]:
        print(f"shipped at step {found['shipped']['step']}, {_when(found['shipped']['when'])}")
    print(f"preview: {found['preview'] or 'none yet'}\nlog: {found['log']}")


_WHOSE = {"begun": "what it began from", "shipped": "what ships", "run": "this run"}


def figures(place: Path, state: State) -> dict[str, Any]:
    """What ``status`` tells, from what is on disk alone."""
    step, elapsed = progress(place)
    going = runs(state)
    logged = [r for r in records(place) if going or r["step"] <= step]
    if logged and logged[-1]["step"] > step:  # the log is ahead of the checkpoint; what was killed has lost that part
        step, elapsed = int(logged[-1]["step"]), logged[-1]["elapsed"]
    late = logged[-LATELY:]
    part = max(1, len(logged) // 10)
    first, last = ([r["noise"] for r in rows] for rows in (logged[:part], logged[-part:]))
    previews = _previews(place)
    return {
        "running": going,
        "pid": state["pid"] if going else None,
        "ended": None if going else state.get("ended") or "it was killed, or the machine went down",
        "began": state["began"],
        "started": state["started"],
        "processes": state["processes"],
        "images": rendered(place),
        "step": step,
        "samples": samples(step, state["parts"]),
        "samples_per_second": len(late) / sum(1 / r["images_per_second"] for r in late) if late else None,
        "minutes": elapsed / 60,
        "processor_minutes": state.get("cpu_seconds", 0.0) / 60,
        "noise": {"first": sum(first) / part, "last": sum(last) / part, "records": part} if logged else None,
        "begun_error": state["judged"]["error"] if "judged" in state else None,
        "shipped": state.get("shipped"),
        "preview": str(previews[-1]) if previews else None,
        "log": str(place / "log.txt"),
    }


def samples(step: int, parts: Sequence[Sequence[int]]) -> int:
    """Samples seen at ``step``; ``parts`` are (first step, samples a step), in order."""
    ends = [begins for begins, _ in parts[1:]] + [step]
    return sum((end - begins) * each for (begins, each), end in zip(parts, ends, strict=True))


def stop(args: PlaceOptions, wait: float = 90.0) -> None:
    """Stop the run; it saves first. ``wait``: seconds to see it end."""
    place, state = _known(args.place)
    if not runs(state):
        print(f"nothing to stop: {state.get('ended') or 'it was killed'}; `{HOW} start` goes on")
        return
    os.kill(state["pid"], signal.SIGTERM)
    with suppress(OSError):  # what is about to end may have its share: beside other work it would take minutes to save
        Path(f"/proc/{state['pid']}/autogroup").write_text("0", encoding="ascii")
    asked = noted = time.monotonic()
    while runs(state):
        now = time.monotonic()
        if now - asked > wait:
            raise SfumatoError(
                f"process {state['pid']} has not saved yet; it will, and end: `{HOW} status` tells. Beside much other "
                f"work a step takes long; `kill -9 {state['pid']}` ends it and may lose its last minutes"
            )
        if now - noted > 5:
            noted = now
            note(f"waiting until it has saved: {now - asked:.0f} s")
        time.sleep(0.2)
    print(f"stopped at step {progress(place)[0]}; `{HOW} start` goes on from there")


def ship(args: ShipOptions) -> None:
    """Put the run's averaged UNet in the place of the shipped one if it is better on the same prompts and noise.

    Better means all of: its error on held-out renders is lower; of all paintings of one thing, of pairs and of views as
    many or more are what was asked; and no class of them alone is worse by more than two standard errors of the
    difference, prompt by prompt. Else nothing is written, which is no failure. The run may go on meanwhile.
    """
    if args.n < 2:
        raise SfumatoError(f"--n must be 2 or more, for a standard error, got {args.n}")
    place, _ = _known(args.place)
    quiet()
    from sfumato.stilllife import weights
    from sfumato.stilllife.train.judge import worse
    from sfumato.stilllife.train.ship import plain

    step, new = progress(place)[0], averaged(place)
    target = weights.folder() / "unet.safetensors"
    if not args.dry_run:
        writable(target.parent)
    judge = make_judge(place, args.n)
    verdicts: dict[str, Verdict] = {}
    for name, unet in (("shipped", weights.module("unet")), ("background", new)):
        note(f"judging {name}: the error of {len(judge.seen['scenes'])} images, {3 * args.n} paintings")
        verdicts[name] = judge.verdict(unet)
    old, now = verdicts.values()
    print_table(table(old, now))
    if reasons := worse(old, now):
        print(f"not better at step {step}, nothing is written: {'; '.join(reasons)}")
        return
    if args.dry_run:
        print(f"better at step {step}; nothing is written in a dry run")
        return
    before = target.read_bytes()
    try:
        weights.save(new.state_dict(), plain(new.config), target)
        weights.write_manifest(target.parent)
    except BaseException:  # Ctrl-C too: weights and their list must fit
        target.write_bytes(before)
        raise
    update(place, base=_shipped(), shipped={"step": step, "when": time.time(), "error": now.error})
    print(f"better: step {step} ships, in {target}")
    note(
        "the InstructPix2Pix is kept as what differs from the base, and the depth ControlNet was trained on the old "
        "one: train both on from the new base (instruct --init, depth --init); VAE, CLIP and oracle are not affected"
    )


def table(old: Verdict, new: Verdict) -> list[dict[str, str]]:
    """Rows of what ships and of the run."""
    rows = [{"key": "error", "shipped": f"{old.error:.5f}", "background": f"{new.error:.5f}"}]
    for key, was in old.obeyed.items():
        shares = (f"{sum(x) / len(x):.3f}" for x in (was, new.obeyed[key]))
        rows.append({"key": key, **dict(zip(("shipped", "background"), shares, strict=True))})
    return rows


def make_judge(place: Path, n: int) -> Judge:
    """The judge of this run: the shipped VAE, CLIP and oracle, and the run's held-out images."""
    import torch

    from sfumato.stilllife import weights
    from sfumato.stilllife.oracle import Oracle
    from sfumato.stilllife.train import data, judge, unet

    device = torch.device("cpu")
    args = Options(data=place / "data", vae=place / "none", clip=place / "none")
    oracle = Oracle.load(weights.path("oracle.safetensors"), device)
    return judge.Judge(unet.load_frozen(args, device), oracle, data.held_out(args, device, HELD_OUT), n)


def averaged(place: Path) -> UNet2DConditionModel:
    """The averaged UNet of the last checkpoint, in half precision's values, as it would ship."""
    from diffusers import UNet2DConditionModel
    from safetensors import SafetensorError, safe_open

    file, prefix = place / "unet" / "checkpoint.safetensors", "ema.unet."
    if not file.exists():
        raise SfumatoError(f"no checkpoint in {place / 'unet'} yet; `{HOW} status` tells how far the run is")
    try:
        with safe_open(file, "pt") as f:
            names = [name for name in f.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors: dict[str, Tensor] = {n.removeprefix(prefix): f.get_tensor(n).half().float() for n in names}
        config: Any = UNet2DConditionModel.load_config(place / "init", local_files_only=True)
        network: Any = UNet2DConditionModel.from_config(config)
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as e:
        reason = " ".join(str(e).split())[:200]
        raise SfumatoError(f"{file} holds no UNet as in {place / 'init'}: {reason}; `{HOW} start --afresh`") from e
    return network.eval().requires_grad_(False)


def _known(place: Path) -> tuple[Path, State]:
    """The folder of a run and its state. Raises ``SfumatoError`` when there is none."""
    place = place.expanduser().resolve()
    state = read_state(place)
    if "parts" not in state:
        raise SfumatoError(f"no background run in {place}; `{HOW} start` starts one, --place names another folder")
    return place, state


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def main(argv: Sequence[str]) -> int:
    """What ``start`` and the supervisor run; not for people."""
    verb, place = argv[0], Path(argv[1])
    try:
        if verb == "begin":
            begin(place)
            return 0
        lowest()
        return supervise(place, Crew())
    except KeyboardInterrupt:  # the supervisor told ``begin`` to stop
        return 130
    except SfumatoError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
