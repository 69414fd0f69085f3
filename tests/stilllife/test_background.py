"""A run in the background: what is on disk, who is running, turns and slices, the verdict, and what ships."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.errors import SfumatoError
from sfumato.stilllife.train import background
from sfumato.stilllife.train.background import PlaceOptions, ShipOptions, StartOptions, StatusOptions
from sfumato.stilllife.train.judge import Verdict, worse

POSIX = pytest.mark.skipif(os.name == "nt", reason="a run in the background needs SIGTERM")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="as Linux has it")
SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]


@pytest.fixture
def place(tmp_path):
    """A run of two processes that has seen 30 steps of 2 x 4 images, and since then 10 of 2 x 8."""
    background.update(
        tmp_path, images=8192, first=2048, processes=2, slice=30.0, rate=1e-4, batch=8, weighting=None, seed=3,
        began=1000.0, started=2000.0, parts=[[0, 8], [30, 16]], command=[*SLEEP, "no"], pid=None, ended=None,
        judged={"error": 0.5}, base={}, cpu_seconds=90.0,
    )  # fmt: skip
    (tmp_path / "init").mkdir()
    (tmp_path / "data").mkdir()
    shards(tmp_path, 2)
    checkpoint(tmp_path, 40, 120.0)
    return tmp_path


def shards(place, count):
    for name in (*(f"train-{k:05d}" for k in range(count)), "val-00000"):
        (place / "data" / f"{name}.safetensors").touch()


def checkpoint(place, step, elapsed):
    """The header of a checkpoint, which is all that is read of it."""
    header = json.dumps({"__metadata__": {"state": json.dumps({"step": step, "elapsed": elapsed})}}).encode()
    (place / "unet").mkdir(exist_ok=True)
    (place / "unet" / "checkpoint.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def logged(place, *rows):
    lines = [dict(zip(("step", "elapsed", "images_per_second", "noise"), row, strict=True)) for row in rows]
    (place / "unet" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def sleeping(place):
    """A stand-in for the supervisor that sleeps, known to the state."""
    command = [*SLEEP, str(place)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    until_ready(child)  # a command that has only just begun has no name yet
    background.update(place, pid=child.pid, command=command)
    yield child
    child.kill()
    child.wait()


# What is on disk


def test_a_state_is_read_as_it_was_written(tmp_path):
    assert background.read_state(tmp_path) == {}
    background.update(tmp_path, a=1, parts=[[0, 8]])
    assert background.update(tmp_path, a=2) == {"a": 2, "parts": [[0, 8]]} == background.read_state(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    (tmp_path / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(SfumatoError, match="cannot be read"):
        background.read_state(tmp_path)


def test_progress_is_what_the_trainer_s_checkpoint_says(tmp_path):
    from sfumato.stilllife.train import loop

    assert background.progress(tmp_path) == (0, 0.0)
    model = torch.nn.Linear(2, 1)
    out = tmp_path / "unet"
    loop.train(
        "tiny", {"unet": model}, lambda i: (model(torch.ones(1, 2)).sum(), {}),
        out=out, minutes=1, rate=1e-3, batch=1, steps=3, log_every=1,
    )  # fmt: skip
    step, elapsed = background.progress(tmp_path)
    assert step == 3 and elapsed == pytest.approx(loop.read_log(out)[-1]["elapsed"], rel=1e-5)
    assert background.records(tmp_path) == loop.read_log(out)
    file = out / "checkpoint.safetensors"
    for spoilt in (b"", b"x" * 100, file.read_bytes()[:40]):
        file.write_bytes(spoilt)
        with pytest.raises(SfumatoError, match="damaged"):
            background.progress(tmp_path)


def test_a_shard_has_as_many_images_as_the_renderer_writes():
    from sfumato.stilllife.train import data

    assert background.PER_SHARD == data.PER_SHARD


def test_nothing_large_is_imported_for_the_help():
    code = "import sys; from sfumato.stilllife.train import background as b; print(b.PlaceOptions().place)"
    code += "; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    env = {**os.environ, "XDG_CACHE_HOME": "somewhere"}
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env).stdout
    assert Path(out.strip()) == Path("somewhere/sfumato/background")


# Who is running


@POSIX
def test_a_run_is_known_by_its_command_and_not_by_its_number(place, sleeping):
    state = background.read_state(place)
    assert background.runs(state)
    assert not background.runs({**state, "command": [*state["command"][:-1], "/another"]})  # the number is another's
    assert not background.runs({**state, "pid": None}) and not background.runs({})
    sleeping.kill()
    sleeping.wait()
    assert not background.runs(state)


@POSIX
def test_without_proc_the_process_list_tells_the_same(place, sleeping, monkeypatch):
    class Nowhere(type(Path())):
        def exists(self, **options):
            return not str(self).startswith("/proc") and super().exists(**options)

    monkeypatch.setattr(background, "Path", Nowhere)
    state = background.read_state(place)
    said = {True: " ".join(state["command"]) + "\n", False: ""}

    def listed(command, **options):
        return subprocess.CompletedProcess(command, 0, stdout=said[command[-1] == str(sleeping.pid)])

    monkeypatch.setattr(background.subprocess, "run", listed)
    assert background.runs(state) and not background.runs({**state, "pid": 1})
    assert not background.runs({**state, "command": [*state["command"], "more"]})


@POSIX
def test_a_second_start_is_refused_while_one_goes_on(place, sleeping):
    before = background.read_state(place)
    with pytest.raises(SfumatoError, match=f"process {sleeping.pid}.*stop"):
        background.start(StartOptions(place=place))
    assert background.read_state(place) == before


@POSIX
def test_a_start_takes_over_from_what_was_killed(place, here, monkeypatch, capsys):
    background.update(place, pid=2**22 + 1, ended="old")
    monkeypatch.setattr(background, "supervisor", lambda place: [*SLEEP, str(place)])
    background.start(StartOptions(place=place, images=4096, processes=1, batch=2))
    state = background.read_state(place)
    try:
        while not (place / "log.txt").read_bytes():
            time.sleep(0.1)
        assert background.runs(state) and os.getsid(state["pid"]) == state["pid"]  # it outlives the terminal
        assert state["began"] == 1000.0 < state["started"] and state["ended"] is None
        assert state["parts"] == [[0, 8], [30, 16], [40, 2]] and state["first"] == 4096
        assert "started from step 40" in capsys.readouterr().out
    finally:
        os.kill(state["pid"], signal.SIGKILL)
        os.waitpid(state["pid"], 0)


@POSIX
def test_a_start_that_ends_at_once_says_so(place, here, monkeypatch):
    monkeypatch.setattr(background, "supervisor", lambda place: [sys.executable, "-c", "raise SystemExit(3)"])
    monkeypatch.setattr(subprocess.Popen, "wait", lambda self, timeout=None: 3)
    with pytest.raises(SfumatoError, match=r"code 3.*log\.txt"):
        background.start(StartOptions(place=place))


@POSIX
def test_other_shipped_weights_are_told_and_taken_only_afresh(place, here, monkeypatch, capsys):
    monkeypatch.setattr(background, "supervisor", lambda place: [sys.executable, "-c", ""])
    monkeypatch.setattr(background, "runs", lambda state: False)

    def goes_on(child, timeout=None):
        raise subprocess.TimeoutExpired("", 1)

    monkeypatch.setattr(subprocess.Popen, "wait", goes_on)
    base = background._shipped()
    background.start(StartOptions(place=place))
    assert "is not what this run began from" not in capsys.readouterr().err  # it does not know what that was
    background.update(place, base=base)
    background.start(StartOptions(place=place))
    assert "is not what this run began from" not in capsys.readouterr().err
    background.update(place, base={**base, "unet.safetensors": "0"})
    background.start(StartOptions(place=place))
    assert capsys.readouterr().err.startswith("note: unet.safetensors: what ships is not what this run began from")
    assert background.progress(place)[0] == 40 and (place / "init").is_dir()

    background.start(StartOptions(place=place, afresh=True))
    assert background.progress(place)[0] == 0 and not (place / "init").exists()
    assert (place / "unet.before" / "checkpoint.safetensors").exists() and background.rendered(place) == 2048
    state = background.read_state(place)
    assert "judged" not in state and "base" not in state and state["parts"] == [[0, 32 * (os.cpu_count() or 1)]]


@POSIX
@pytest.mark.parametrize("name", ["images", "first", "processes", "slice", "rate", "batch"])
def test_what_makes_no_run_is_refused(tmp_path, name):
    with pytest.raises(SfumatoError, match=f"--{name}"):
        background.start(StartOptions(place=tmp_path / "new", **{name: 0}))
    assert not (tmp_path / "new").exists()


def test_room_for_the_shards_that_are_missing(place, monkeypatch):
    def free(mebibytes):
        usage = type("Usage", (), {"free": mebibytes * 2**20})
        monkeypatch.setattr(background.shutil, "disk_usage", lambda place: usage)

    free(6 * 78 + 400)
    background.check_room(place, 8 * 1024)  # two of them are there
    free(6 * 78 + 399)
    with pytest.raises(SfumatoError, match="8192 images"):
        background.check_room(place, 8 * 1024)
    background.check_room(place, 1024)


# Turns


class Fake:
    """Notes what it is given; trains a minute less than it is asked, renders all that it is asked."""

    def __init__(self, place, most, fails=None):
        self.place, self.most, self.fails = place, most, fails
        self.seen = []
        self.stopping = False

    def __call__(self, commands):
        words = commands[0]
        told = dict(zip(words[4::2], words[5::2], strict=False))
        name = words[3] if "sfumato.stilllife.train" in words else words[-2]
        wanted = {"data": "--images", "unet": "--minutes"}.get(name)
        self.seen.append((name, len(commands), float(told[wanted]) if wanted else None))
        self.stopping = len(self.seen) == self.most
        if name == self.fails:
            return 7
        if name == "data":
            shards(self.place, int(told["--images"]) // 1024)
        elif name == "unet":
            step = background.progress(self.place)[0]
            checkpoint(self.place, step + 10, 60 * (float(told["--minutes"]) - 1))
        elif name == "begin":
            (self.place / "init").mkdir()
            background.update(self.place, judged={"error": 1.0})
        return 0


def test_slices_ask_for_what_is_used_and_a_slice_more(place):
    crew = Fake(place, 5)
    assert background.supervise(place, crew) == 0
    assert crew.seen == [("unet", 2, 32), ("data", 1, 6144), ("unet", 2, 61), ("data", 1, 8192), ("unet", 2, 90)]
    assert background.read_state(place)["ended"] == "stopped at step 70"
    more = Fake(place, 2)
    assert background.supervise(place, more) == 0
    assert more.seen == [("unet", 2, 119), ("unet", 2, 148)]  # all is rendered


def test_a_new_run_renders_then_looks_at_what_it_begins_from_then_trains(tmp_path):
    (tmp_path / "data").mkdir()
    background.update(
        tmp_path, images=3072, first=2048, processes=3, slice=5.0, rate=1e-4, batch=8, weighting="even", seed=3
    )
    crew = Fake(tmp_path, 4)
    assert background.supervise(tmp_path, crew) == 0
    assert crew.seen == [("data", 1, 2048), ("begin", 1, None), ("unet", 3, 5), ("data", 1, 3072)]


def test_a_trainer_understands_what_it_is_told(place, monkeypatch):
    from sfumato.stilllife.train import __main__, data, unet

    told = []
    monkeypatch.setattr(data, "run", told.append)
    monkeypatch.setattr(unet, "run", told.append)
    state = background.update(place, weighting="even")
    for command in (background._training(place, state), background._rendering(place, state, 4096)):
        assert command[:3] == [sys.executable, "-m", "sfumato.stilllife.train"] and __main__.main(command[3:]) == 0
    train, render = told
    assert (train.resume, train.cooldown, train.minutes, train.threads) == (True, 0.0, 32.0, 1)
    assert (train.rate, train.batch, train.weighting, train.seed) == (1e-4, 8, "even", 3)
    assert train.out == train.report == place / "unet" and train.init == place / "init"
    assert not train.vae.exists() and not train.clip.exists()  # so that those that ship are taken
    assert (render.images, render.val, render.out, render.processes) == (4096, 1024, train.data, 2)


@pytest.mark.parametrize("fails", ["unet", "data"])
def test_a_turn_that_fails_ends_the_run_with_a_word(place, capsys, fails):
    crew = Fake(place, 99, fails)
    assert background.supervise(place, crew) == 1
    assert [name for name, *_ in crew.seen] == ["unet", "data"][: ["unet", "data"].index(fails) + 1]
    ended = background.read_state(place)["ended"]
    assert "failed with code 7" in ended and ended in capsys.readouterr().out


def test_a_slice_that_trains_nothing_ends_the_run(place):
    crew = Fake(place, 99)
    crew.place = place / "elsewhere"
    crew.place.mkdir()
    assert background.supervise(place, crew) == 1
    assert len(crew.seen) == 1 and "made no step after step 40" in background.read_state(place)["ended"]


def test_only_the_newest_previews_stay(place):
    for step in range(990_000, 1_030_000, 1000):
        (place / "unet" / f"preview-{step:06d}.png").touch()
    background.supervise(place, Fake(place, 2))
    kept = background._previews(place)
    assert len(kept) == background.PREVIEWS and kept[-1].name == "preview-1029000.png"


# Processes


PARENT = """
import sys
from pathlib import Path
from sfumato.stilllife.train import background

CHILD = '''
import signal, sys, time
from pathlib import Path
def save(*args):
    Path(sys.argv[1]).write_text("saved")
    sys.exit(130)
signal.signal(signal.SIGINT, save)
print("ready", flush=True)
time.sleep(600)
'''
place = Path(sys.argv[1])
background.lowest = lambda: print("lowest", flush=True)  # at which it waits for long where others work
background._training = lambda place, state: [sys.executable, "-c", CHILD, str(place / "saved")]
background.update(place, processes=1)
sys.exit(background.main(["supervise", str(place)]))
"""


def supervising(place):
    """A supervisor in a session of its own, as it lowers that of all that is in it."""
    command = [sys.executable, "-c", PARENT, str(place)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def until_ready(child) -> list[str]:
    """What it says before."""
    said = []
    for line in child.stdout:
        if line == "ready\n":
            return said
        said.append(line)
    raise AssertionError("it ended")


@POSIX
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_stops_the_supervisor_and_its_child_which_saves(place, number):
    child = supervising(place)
    try:
        assert "lowest\n" in until_ready(child)
        child.send_signal(getattr(signal, number))
        assert child.stdout and "stopped at step 40" in child.stdout.read()  # read to the end: nobody writes any more
        assert child.wait() == 0 and (place / "saved").read_text() == "saved"
        assert background.read_state(place)["ended"] == "stopped at step 40"
    finally:
        child.kill()
        child.wait()


@LINUX
def test_a_killed_supervisor_takes_its_child_with_it(place):
    child = supervising(place)
    until_ready(child)
    child.kill()
    assert child.stdout and child.stdout.read() == ""  # the child ended too
    assert child.wait() == -9 and (place / "saved").read_text() == "saved"


@POSIX
def test_one_that_fails_ends_the_others(tmp_path):
    code = """
import sys
from sfumato.stilllife.train.background import Crew
sleep = "import time; time.sleep(600)"
fail = "import os, sys; sys.exit(5 if os.environ['RANK'] + os.environ['WORLD_SIZE'] == '12' else 6)"
print(Crew()([[sys.executable, "-c", sleep], [sys.executable, "-c", fail]]), Crew()([[sys.executable, "-c", ""]]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["5", "0"]


@POSIX
def test_the_lowest_priority_goes_to_the_children_too():
    code = """
import os
from sfumato.stilllife.train import background
background.lowest()
if not (child := os.fork()):
    print(os.getpriority(os.PRIO_PROCESS, 0), getattr(os, "sched_getscheduler", lambda n: None)(0), flush=True)
    os._exit(0)
os.waitpid(child, 0)
try:
    print(open("/proc/self/autogroup").read())
except OSError:
    print("none")
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, start_new_session=True
    ).stdout.split()
    assert out[0] == "19"
    if sys.platform == "linux":
        assert out[1] == str(os.SCHED_IDLE)
    if out[2].startswith("/autogroup"):
        assert out[-1] == "19"


# Commands that tell


def test_an_empty_place_is_one_clear_line(tmp_path):
    calls = (
        lambda: background.status(StatusOptions(place=tmp_path)),
        lambda: background.stop(PlaceOptions(place=tmp_path)),
        lambda: background.ship(ShipOptions(place=tmp_path / "none")),
    )
    for call in calls:
        with pytest.raises(SfumatoError, match=r"no background run in .* start"):
            call()
    assert not list(tmp_path.iterdir())


def test_status_tells_what_was_gained(place, capsys):
    rows = [(2 * k, 6.0 * k, 10.0, 1.0 - 0.01 * k) for k in range(1, 11)]
    rows += [(20 + 2 * k, 60 + 6.0 * k, 20.0 if k % 2 else 5.0, 0.9 - 0.01 * k) for k in range(1, 11)]
    logged(place, *rows, (42, 126.0, 99.0, 0.1))  # the last one was lost: the checkpoint is older, and nobody runs
    (place / "unet" / "preview-000040.png").touch()
    background.update(place, shipped={"step": 20, "when": 1500.0, "error": 0.4})
    background.status(StatusOptions(place=place, json=True))
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "running": False,
        "pid": None,
        "ended": "it was killed, or the machine went down",
        "began": 1000.0,
        "started": 2000.0,
        "processes": 2,
        "images": 2048,
        "step": 40,
        "samples": 30 * 8 + 10 * 16,
        "samples_per_second": pytest.approx(8.0),  # the images over the time: 10 / (5 / 20 + 5 / 5)
        "minutes": 2.0,
        "processor_minutes": 1.5,
        "noise": {"first": pytest.approx(0.985), "last": pytest.approx(0.805), "records": 2},
        "begun_error": 0.5,
        "shipped": {"step": 20, "when": 1500.0, "error": 0.4},
        "preview": str(place / "unet" / "preview-000040.png"),
        "log": str(place / "log.txt"),
    }
    background.status(StatusOptions(place=place))
    out = capsys.readouterr().out
    assert "noise loss: 0.98500 (first 2 records) to 0.80500 (last 2): -18.27%" in out
    assert "step 40: 400 samples, 8.0 a second" in out and "not running" in out and "shipped at step 20" in out


@POSIX
def test_status_of_one_that_runs_is_as_new_as_its_log(place, sleeping, capsys):
    logged(place, (40, 120.0, 4.0, 0.5), (60, 180.0, 4.0, 0.4))
    told = background.figures(place, background.read_state(place))
    assert (told["running"], told["pid"], told["step"], told["minutes"]) == (True, sleeping.pid, 60, 3.0)
    assert told["samples"] == 30 * 8 + 30 * 16
    background.status(StatusOptions(place=place))
    assert f"running: process {sleeping.pid}" in capsys.readouterr().out


def test_status_before_anything_is_trained(place, capsys):
    (place / "unet" / "checkpoint.safetensors").unlink()
    background.update(place, parts=[[0, 16]])
    background.status(StatusOptions(place=place))
    out = capsys.readouterr().out
    assert "step 0: 0 samples" in out and "preview: none yet" in out and "noise" not in out


def test_status_judges_the_averaged_weights(place, monkeypatch, capsys, here):
    judge = type("Fixed", (), {"errors": lambda self, unet: {"error": 0.25 if unet == "run" else 0.75}})
    monkeypatch.setattr(background, "make_judge", lambda place, n: judge())
    monkeypatch.setattr(background, "averaged", lambda place: "run")
    background.status(StatusOptions(place=place, judge=True, json=True))
    assert json.loads(capsys.readouterr().out)["error"] == {"begun": 0.5, "shipped": 0.75, "run": 0.25}
    background.status(StatusOptions(place=place, judge=True))
    assert "held-out error of this run: 0.25000" in capsys.readouterr().out


@POSIX
def test_stop_waits_until_it_has_ended(place, sleeping, monkeypatch, capsys):
    background.stop(PlaceOptions(place=place))
    assert sleeping.wait() == -signal.SIGTERM
    assert "stopped at step 40" in capsys.readouterr().out
    background.stop(PlaceOptions(place=place))
    assert capsys.readouterr().out.startswith("nothing to stop: it was killed")


@POSIX
def test_stop_does_not_wait_for_ever(place, sleeping, monkeypatch, capsys):
    clock = iter(range(1000))
    monkeypatch.setattr(background.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(background.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(background.os, "kill", lambda pid, number: None)
    with pytest.raises(SfumatoError, match=f"kill -9 {sleeping.pid}"):
        background.stop(PlaceOptions(place=place), wait=10)
    assert "waiting until it has saved: 6 s" in capsys.readouterr().err


@LINUX
def test_what_is_to_stop_gets_its_share_to_save(place, sleeping, monkeypatch):
    group = Path(f"/proc/{sleeping.pid}/autogroup")
    if not group.exists() or "nice" not in group.read_text():
        pytest.skip("sessions share the cores otherwise here")
    group.write_text("19")
    monkeypatch.setattr(background.os, "kill", lambda pid, number: None)
    with pytest.raises(SfumatoError, match="not saved yet"):
        background.stop(PlaceOptions(place=place), wait=-1)
    assert group.read_text().endswith("nice 0\n")


# The verdict


def verdict(error=0.5, single=50, pair=20, view=30, n=60):
    return Verdict(
        error, {k: [1.0] * c + [0.0] * (n - c) for k, c in locals().items() if k in ("single", "pair", "view")}
    )


def test_better_is_a_lower_error_and_no_fewer_right():
    assert worse(verdict(), verdict(error=0.4999)) == []
    assert worse(verdict(), verdict(0.4, single=51, pair=19)) == []  # one fewer is within the error


@pytest.mark.parametrize(
    ("new", "word"),
    [
        (verdict(error=0.5, pair=40), "error is not lower"),
        (verdict(error=float("nan"), pair=40), "error is not lower"),
        (verdict(error=0.4, single=49), "fewer paintings"),
        (verdict(error=0.4, single=44, pair=26), "single is worse by 0.100"),  # 6 of 60 the worse, none the better
        (verdict(error=0.4, view=0, pair=60), "view is worse by 0.500"),
    ],
)
def test_each_clause_alone_forbids(new, word):
    (reason,) = worse(verdict(), new)
    assert word in reason


def test_the_standard_error_is_that_of_the_paired_differences():
    was, now = [1.0, 1.0, 0.0, 0.0] * 10, [0.0, 1.0, 1.0, 0.0] * 10  # as many, but others
    old = Verdict(1.0, {"single": [*was, 1.0, 1.0], "pair": [0.0, 0.0]})
    new = Verdict(0.9, {"single": [*now, 0.0, 0.0], "pair": [1.0, 1.0]})
    assert worse(old, new) == []  # 2 of 42 fewer; unpaired or not, far within
    # 3 of 60 worse, and none better: 0.05 against twice 0.0284, so not sure; a fifth one makes it so
    assert worse(verdict(), verdict(0.4, single=47, pair=25)) == []
    assert len(worse(verdict(), verdict(0.4, single=45, pair=25))) == 1


def test_a_verdict_is_what_the_judge_says(here, monkeypatch, tmp_path):
    from sfumato.stilllife import weights
    from sfumato.stilllife.oracle import Oracle
    from sfumato.stilllife.train import Options, data, judge, unet

    monkeypatch.setattr(judge, "STEPS", 1)
    monkeypatch.setattr(judge, "obeyed", lambda key, readings, said: np.array([0.0, 1.0, float(key == "pair")]))
    frozen = unet.load_frozen(Options(vae=tmp_path / "none", clip=tmp_path / "none"), torch.device("cpu"))
    seen = data.render_batch(np.random.default_rng(0), 4, "cpu")
    one = judge.Judge(frozen, Oracle((8, 8), (1, 1)), seen, n=3)
    network = weights.module("unet")
    told = one.verdict(network)
    assert told.obeyed == {"single": [0.0, 1.0, 0.0], "pair": [0.0, 1.0, 1.0], "view": [0.0, 1.0, 0.0]}
    assert told.error == one.errors(network)["error"]


# Shipping


@pytest.fixture
def trained(place, shipped, monkeypatch, tmp_path_factory):
    """A run whose averaged UNet is the tiny shipped one plus one hundredth; ships into a folder of its own."""
    import shutil

    from sfumato.stilllife import weights

    own = tmp_path_factory.mktemp("ships") / "weights"
    shutil.copytree(shipped[0], own)
    monkeypatch.setattr(weights, "folder", lambda: own)
    background.update(place, base=background._shipped())
    network = weights.module("unet")
    (place / "init").rmdir()
    network.save_pretrained(place / "init")
    tensors = {f"ema.unet.{k}": v + 0.01 for k, v in network.state_dict().items()}
    tensors |= {f"live.unet.{k}": v * 0 for k, v in network.state_dict().items()}
    tensors |= {"ema.layout.read.0.weight": torch.ones(3)}
    state = {"state": json.dumps({"step": 40, "elapsed": 120.0})}
    save_file(tensors, place / "unet" / "checkpoint.safetensors", metadata=state)
    verdicts = [verdict(), verdict(0.4)]
    seen = []

    def judged(judge, unet):
        seen.append(unet)
        return verdicts[len(seen) - 1]

    judge = type("Seen", (), {"seen": {"scenes": []}, "verdict": judged})
    monkeypatch.setattr(background, "make_judge", lambda place, n: judge())
    return place, own, verdicts, seen


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_better_one_ships_and_can_be_loaded(trained, capsys):
    from sfumato.stilllife import weights

    place, own, _, seen = trained
    before = files(own)
    background.ship(ShipOptions(place=place))
    out = capsys.readouterr()
    assert "better: step 40 ships" in out.out and "depth --init" in out.err
    changed = {str(k) for k, v in files(own).items() if before.get(k) != v}
    assert changed == {"unet.safetensors", "manifest.json"} and files(own).keys() == before.keys()
    weights._checked.cache_clear()
    ships, old = weights.module("unet").state_dict(), seen[0].state_dict()
    for key, value in ships.items():
        torch.testing.assert_close(value, (old[key] + 0.01).half().float(), atol=0, rtol=0)
        assert torch.equal(value, seen[1].state_dict()[key])  # it was judged as it ships
    state = background.read_state(place)
    assert (
        state["shipped"]["step"] == 40
        and state["base"]["unet.safetensors"]
        == json.loads((own / "manifest.json").read_text(encoding="utf-8"))["unet.safetensors"]["sha256"]
    )  # so that the next start does not warn


@pytest.mark.parametrize("dry_run", [False, True])
def test_nothing_is_written_of_what_is_not_better_or_in_a_dry_run(trained, capsys, dry_run):
    place, own, verdicts, _ = trained
    if not dry_run:
        verdicts[1] = verdict(0.6)
    before = files(own)
    background.ship(ShipOptions(place=place, dry_run=dry_run))
    out = capsys.readouterr().out
    assert ("dry run" in out) if dry_run else ("not better at step 40" in out and "error is not lower" in out)
    assert files(own) == before and "shipped" not in background.read_state(place)


def test_weights_and_their_list_fit_even_when_the_list_cannot_be_written(trained, monkeypatch):
    from sfumato.stilllife import weights

    place, own, *_ = trained
    before = files(own)

    def full(place):
        raise SfumatoError("the disk is full")

    monkeypatch.setattr(weights, "write_manifest", full)
    with pytest.raises(SfumatoError, match="full"):
        background.ship(ShipOptions(place=place))
    assert files(own) == before


def test_what_cannot_be_judged_is_one_line(trained):
    place, *_ = trained
    with pytest.raises(SfumatoError, match="--n"):
        background.ship(ShipOptions(place=place, n=1))
    file = place / "unet" / "checkpoint.safetensors"
    whole = load_file(file)
    state = {"state": json.dumps({"step": 1, "elapsed": 1.0})}
    save_file({k: v for k, v in whole.items() if "conv_in" not in k}, file, metadata=state)
    with pytest.raises(SfumatoError, match=r"holds no UNet.*conv_in"):
        background.averaged(place)
    file.unlink()
    with pytest.raises(SfumatoError, match="no checkpoint"):
        background.averaged(place)


def test_what_it_begins_from_is_kept_and_judged(here, monkeypatch, tmp_path):
    from sfumato.stilllife import weights

    said = []
    judge = type("Fixed", (), {"errors": lambda self, unet: said.append(unet) or {"error": 0.125}})
    monkeypatch.setattr(background, "make_judge", lambda place, n: judge())
    background.main(["begin", str(tmp_path)])
    state = background.read_state(tmp_path)
    assert state["judged"] == {"error": 0.125} and state["base"] == background._shipped()
    for key, value in weights.module("unet").state_dict().items():
        assert torch.equal(value, said[0].state_dict()[key])
    background.update(tmp_path, base={"unet.safetensors": "as it was"})
    background.main(["begin", str(tmp_path)])  # goes on from what is there
    assert background.read_state(tmp_path)["base"] == {"unet.safetensors": "as it was"} and len(said) == 2


# All of it


@POSIX
@pytest.mark.slow
def test_a_run_starts_stops_and_goes_on(tmp_path, capsys):
    options = StartOptions(place=tmp_path, images=1024, first=1024, slice=0.2, batch=2, processes=2)
    steps = []
    for _ in range(2):
        background.start(options)
        while background.progress(tmp_path)[0] <= (steps[-1] if steps else 0):
            assert background.runs(background.read_state(tmp_path)), (tmp_path / "log.txt").read_text()
            time.sleep(0.5)
        background.stop(PlaceOptions(place=tmp_path), wait=600)
        steps.append(background.progress(tmp_path)[0])
    assert 0 < steps[0] < steps[1]
    background.status(StatusOptions(place=tmp_path, judge=True, json=True))
    told = json.loads(capsys.readouterr().out.partition("\n{")[2].join(("{", "")))
    assert told["step"] == steps[1] and told["samples"] == 4 * steps[1] and told["error"]["run"] > 0
