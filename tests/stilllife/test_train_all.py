"""Everything in one go: the minutes shared out, what goes wrong, what is packed, and a rehearsal with real networks."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sfumato.errors import SfumatoError
from sfumato.stilllife import networks, weights
from sfumato.stilllife.scene import Scene, sample_scene
from sfumato.stilllife.train import AllOptions, Options, __main__, data, everything, gpu, pool, ship, unet

SETUP = 6.0  # seconds that a trainer takes before and after it trains


class Watch:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Trainers:
    """Trainers that take as long as they are told, and what they were told. ``trouble`` maps a stage to what each of
    its calls does first."""

    def __init__(self, watch: Watch, **trouble) -> None:
        self.watch, self.trouble = watch, trouble
        self.calls: list[tuple[str, Options]] = []

    def __call__(self, stage: str):
        def run(args: Options) -> None:
            self.calls.append((stage, args))
            assert args.out is not None
            (args.out / "final").mkdir(parents=True, exist_ok=True)
            for thing in self.trouble.get(stage, [])[:1]:
                self.trouble[stage].pop(0)
                thing(args)
            self.watch.now += SETUP + 60 * args.minutes
            steps = args.steps or 30
            (args.out / "log.jsonl").write_text(json.dumps({"step": steps, "loss": 0.5}) + "\n", encoding="utf-8")

        return run

    def of(self, stage: str) -> list[Options]:
        return [args for name, args in self.calls if name == stage]


class Shipped:
    """Stands for a network that ships."""

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").touch()


@pytest.fixture
def go(monkeypatch, tmp_path):
    """Run everything with trainers that only pass the time; the run, its trainers and its clock."""

    def run(shares=("render=0", "bench=0"), watch=None, **settings):
        trouble = {k: settings.pop(k) for k in everything.BATCHES if k in settings}
        watch = watch or Watch()
        trainers = Trainers(watch, **trouble)
        monkeypatch.setattr(everything, "trainer", trainers)
        monkeypatch.setattr(weights, "module", lambda name: Shipped())
        monkeypatch.setattr(everything.Everything, "_free", lambda self: None)  # there is nothing, and it takes long
        monkeypatch.setattr(everything.loop, "start", lambda args: torch.device("cpu"))
        monkeypatch.setattr(ship, "collect", lambda cache, rank=8, names=(): {})
        args = AllOptions(out=tmp_path / "out", data=tmp_path / "data", shares=shares, device="cpu", **settings)
        one = everything.Everything(args, watch)
        one.trainers, one.watch = trainers, watch  # pyright: ignore[reportAttributeAccessIssue]
        return one

    return run


def report(one) -> dict:
    return json.loads((one.out / "report.json").read_text(encoding="utf-8"))


def rows(one) -> dict[str, dict]:
    return {r["stage"]: r for r in report(one)["stages"]}


# The minutes


def test_the_default_shares_are_the_whole_and_are_told():
    assert sum(everything.SHARES.values()) == pytest.approx(1)
    help_text = Path(everything.__file__).with_name("__init__.py").read_text(encoding="utf-8")
    page = (Path(__file__).parents[2] / "docs" / "stilllife" / "gpu.md").read_text(encoding="utf-8")
    told = " ".join(help_text.split())
    for stage, share in everything.SHARES.items():
        assert f"{stage} {share:.2f}" in told and f"| {stage} | {share:.2f} |" in page


def test_shares_can_be_given_and_what_is_wrong_with_them_is_said():
    assert everything.read_shares(["unet=0.5", "depth=0"]) == {**everything.SHARES, "unet": 0.5, "depth": 0, "words": 0}
    assert everything.read_shares([], "nothing") == everything.SHARES
    with pytest.raises(SfumatoError, match="unknown stage 'unett'; did you mean unet\\? known: render, vae"):
        everything.read_shares(["unett=0.5"])
    for text in ("unet", "unet=much", "unet=-1", "unet=nan", "unet=inf"):
        with pytest.raises(SfumatoError, match="STAGE=NUMBER"):
            everything.read_shares([text])


def test_minutes_that_one_stage_leaves_go_to_those_that_follow():
    watch = Watch()
    budget = everything.Budget(10, {"a": 0.5, "b": 0.0, "c": 0.25, "d": 0.25}, watch)
    assert [budget.share(k) for k in "abcd"] == [5, 0, 5, 10]
    watch.now += 120
    assert budget.share("c") == 4 and budget.share("d") == 8
    budget.lost = 1.0
    assert budget.training("c") == 3 and budget.share("c") == 4
    assert budget.training("c", setup=1.5) == 2.5
    budget.lost = 30.0
    assert budget.training("c") == 2  # never less than half
    watch.now += 600
    assert budget.share("d") == 0


@pytest.mark.parametrize("minutes", [2, 9, 60])
def test_a_run_ends_in_the_time_whatever_loading_takes(go, minutes):
    one = go(minutes=minutes)
    one.run()
    used = (one.watch.now - 1000) / 60
    assert 0.8 * minutes < used <= minutes + SETUP / 60
    trained = {k: a.minutes for k, a in one.trainers.calls}
    assert list(trained) == ["vae", "clip", "oracle", "unet", "instruct", "depth"]
    assert max(trained, key=lambda k: trained[k]) == "unet"
    found = rows(one)
    assert {found[k]["state"] for k in trained} == {"finished"}
    assert found["unet"]["samples"] == 30 * 64 and found["unet"]["loss"] == 0.5 and found["unet"]["batch"] == 64
    assert found["words"]["why"] == "the text encoder that ships stays"


def test_with_a_share_for_the_bench_the_trainers_leave_it_time(go):
    one = go(minutes=9, shares=("render=0",), unet=[refuse])
    one.run()
    assert (one.watch.now - 1000) / 60 < 9 - 0.5
    assert rows(one)["bench"]["why"] == "there is no new UNet to compare"


def test_what_there_is_no_time_for_is_skipped_and_said(go):
    one = go(minutes=0.5)
    one.run()
    found = rows(one)
    late = [k for k, r in found.items() if r["why"].startswith("no time")]
    assert late and all(not (one.out / k).exists() for k in late)
    assert (one.watch.now - 1000) <= 30 + SETUP + 5
    assert "unet" in dict(one.trainers.calls)


def test_with_steps_no_stage_is_skipped_for_time(go):
    one = go(minutes=0.01, steps=3)
    one.run()
    assert [a.steps for _, a in one.trainers.calls] == [3] * 6


# What goes wrong


def refuse(args):
    raise SfumatoError("the loss is not finite")


def short(args):
    raise torch.OutOfMemoryError("no memory")


def short_on_cpu(args):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def checkpoint(step: int, seconds: float):
    def write(args):
        state = json.dumps({"step": step, "elapsed": seconds})
        save_file({"x": torch.zeros(1)}, args.out / "checkpoint.safetensors", {"state": state})
        raise torch.OutOfMemoryError("no memory")

    return write


def test_out_of_memory_halves_the_batch_and_goes_on(go):
    one = go(unet=[short, short_on_cpu])
    one.run()
    assert [(a.batch, a.resume) for a in one.trainers.of("unet")] == [(64, False), (32, True), (16, True)]
    found = rows(one)["unet"]
    assert (found["state"], found["batch"], found["samples"]) == ("finished", 16, 30 * 16)


def test_after_out_of_memory_the_last_checkpoint_counts(go):
    one = go(unet=[checkpoint(10, 6.0)])
    one.run()
    first, second = one.trainers.of("unet")
    assert second.minutes == pytest.approx(first.minutes + 0.1)  # what is left, beyond what is behind it
    assert rows(one)["unet"]["samples"] == 10 * 64 + 20 * 32


def test_a_batch_of_one_that_does_not_fit_ends_the_stage_only(go):
    one = go(unet=[short] * 9, batch=4)
    one.run()
    assert [a.batch for a in one.trainers.of("unet")] == [4, 2, 1]
    found = rows(one)
    assert found["unet"]["state"] == "skipped" and found["unet"]["why"] == "out of memory at a batch of 1"
    assert found["depth"]["state"] == "finished"


def test_a_stage_that_is_refused_is_skipped_and_the_shipped_network_stands_in(go):
    one = go(vae=[refuse])
    one.run()
    assert rows(one)["vae"]["why"] == "the loss is not finite" and rows(one)["vae"]["state"] == "skipped"
    assert not (one.out / "vae" / "final").exists()  # not half of one
    of = {k: a for k, a in one.trainers.calls}
    assert not of["unet"].vae.exists() and of["unet"].clip == one.out / "clip" / "final"
    assert of["depth"].unet == one.out / "unet" / "final" and not of["depth"].vae.exists()


def test_a_new_vae_is_used_and_packed_only_with_a_unet_that_learnt_on_it(go):
    one = go(unet=[refuse])
    one.run()
    of = {k: a for k, a in one.trainers.calls}
    assert of["unet"].vae == one.out / "vae" / "final" and not of["instruct"].vae.exists()
    assert not of["instruct"].unet.exists()
    assert "vae: left out, because no UNet has learnt on it" in report(one)["remarks"]


def test_a_relative_of_another_unet_is_told(go):
    one = go(instruct=[refuse])
    one.run()
    assert any(r.startswith("instruct: the one that ships was made for another UNet") for r in report(one)["remarks"])


def test_a_fault_of_ours_costs_one_stage_and_fails_at_the_end(go):
    def fault(args):
        raise ValueError("seven is no number")

    one = go(oracle=[fault])
    with pytest.raises(SfumatoError, match=r"oracle \(ValueError: seven is no number\)"):
        one.run()
    assert rows(one)["oracle"]["state"] == "failed" and rows(one)["depth"]["state"] == "finished"
    assert "seven is no number" in (one.out / "oracle" / "traceback.txt").read_text(encoding="utf-8")


def test_a_package_that_is_missing_costs_one_stage(go):
    def missing(args):
        raise ModuleNotFoundError("No module named 'tyro'", name="tyro")

    one = go(instruct=[missing])
    one.run()
    assert rows(one)["instruct"]["why"] == "this needs tyro"


def test_an_interrupted_run_goes_on_and_keeps_what_is_finished(go):
    def interrupt(args):
        raise KeyboardInterrupt("unet stopped at step 5 and saved; go on with --resume")

    one = go(unet=[interrupt])
    with pytest.raises(KeyboardInterrupt, match="stopped in unet; go on with --resume"):
        one.run()
    assert rows(one)["unet"]["state"] == "stopped" and rows(one)["vae"]["state"] == "finished"
    with pytest.raises(SfumatoError, match="holds a run; go on with --resume"):
        go()
    again = go(resume=True)
    again.run()
    assert [k for k, _ in again.trainers.calls] == ["unet", "instruct", "depth"]
    assert again.trainers.of("unet")[0].resume and again.trainers.of("unet")[0].vae == one.out / "vae" / "final"
    assert rows(again)["vae"]["state"] == "kept"


def test_from_nothing_words_come_first_and_clip_starts_from_them(go):
    one = go(start="nothing")
    one.run()
    of = {k: a for k, a in one.trainers.calls}
    assert of["clip"].init == one.out / "words" / "final" and of["unet"].init is None
    assert rows(one)["words"]["state"] == "finished"


def test_from_nothing_clip_cannot_start_without_words(go):
    two = go(start="nothing", words=[refuse])
    two.run()
    assert "words" in rows(two)["clip"]["why"] and not two.trainers.of("clip")


def test_from_what_ships_each_network_starts_there(go):
    one = go()
    one.run()
    of = {k: a for k, a in one.trainers.calls}
    assert of["instruct"].init == weights.folder() / "instruct.safetensors"
    assert of["oracle"].init == weights.folder()
    for name in ("vae", "clip", "unet", "depth"):
        assert (of[name].init / "config.json").is_file()


# Rendering


def test_relatives_that_stayed_at_home_start_from_the_unet(go, monkeypatch, tmp_path):
    place = tmp_path / "weights"
    place.mkdir()
    for file in weights.folder().iterdir():
        if file.name not in ("depth.safetensors", "instruct.safetensors"):
            (place / file.name).symlink_to(file)
    monkeypatch.setattr(weights, "folder", lambda: place)
    one = go(minutes=4.0)
    one.run()
    for stage in everything.RELATIVES:
        (args,) = one.trainers.of(stage)
        assert args.init is None and args.unet == one.out / "unet" / "final"
        assert rows(one)[stage]["state"] == "finished"
        assert rows(one)[stage]["why"] == "none here, trained from the UNet"
    assert one.trainers.of("vae")[0].init is not None


def test_time_runs_out_on_the_right_shards():
    listed = list(everything.shards({"train": 3000, "val": 512, "pairs": 187}))
    assert listed == [
        ("val", 0, 512),
        ("train", 0, 1024),
        ("pairs", 0, 187),
        ("train", 1, 1024),
        ("train", 2, 952),
    ]


def blank(rng, count, device) -> data.Batch:
    return {
        "images": torch.zeros(count, 3, 128, 128),
        "thing": torch.zeros(count, 128, 128, dtype=torch.uint8),
        "depth": torch.zeros(count, 64, 64, dtype=torch.float16),
        "mark": torch.zeros(count, 3, dtype=torch.int16),
        "scenes": [sample_scene(rng) for _ in range(count)],
    }


@pytest.mark.parametrize("each", [0.5, 4.0])
def test_every_kind_of_image_gets_some_of_the_time(go, monkeypatch, each):
    watch = Watch()

    def slow(rng, count, device):
        watch.now += each
        return blank(rng, count, device)

    def slow_pairs(rng, count, device):
        watch.now += each
        return torch.zeros(count, 2, 3, 128, 128), [{"instruction": "", "captions": ["", ""]}] * count

    monkeypatch.setattr(data, "render_batch", slow)
    monkeypatch.setattr(data, "pair_batch", slow_pairs)
    one = go(minutes=1, shares=("render=0.4", "bench=0"), watch=watch)
    share = one.budget.share("render")
    one.run()
    counts = {k: len(data.Shards(one.args.data, k)) for k in data.SPLITS}
    assert all(counts.values()) and counts["train"] >= counts["val"]
    assert rows(one)["render"]["samples"] == sum(counts.values())
    assert rows(one)["render"]["minutes"] <= share + each / 60 and watch.now - 1000 <= 60 + SETUP


def test_what_the_folder_holds_is_not_rendered(go, monkeypatch):
    monkeypatch.setattr(data, "render_batch", blank)
    monkeypatch.setattr(data, "pair_batch", lambda *a: pytest.fail("pairs are there"))
    one = go(minutes=9, shares=("bench=0",), images=4)
    one.args.data.mkdir()
    for split in ("train", "pairs"):
        (one.args.data / f"{split}-00000.safetensors").touch()
    one.run()
    assert rows(one)["render"]["why"] == "train: found, val: 4, pairs: found"
    assert (one.args.data / "train-00000.safetensors").stat().st_size == 0


def test_a_shard_ends_when_it_is_late_and_halves_when_memory_is_short(monkeypatch, tmp_path):
    asked: list[int] = []

    def render(rng, count, device):
        asked.append(count)
        if count > 8:
            raise torch.OutOfMemoryError("no memory")
        return blank(rng, count, device)

    monkeypatch.setattr(data, "render_batch", render)
    late = iter([False, True])
    one = everything.Renderer(torch.device("cpu"), 0)
    assert one.shard(tmp_path / "train-00000.safetensors", "train", 0, 100, lambda: next(late)) == 16
    assert asked == [32, 16, 8, 8]
    assert len(data.Shards(tmp_path)) == 16


# The pool


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards of 6 and 3 images with latents of their own."""
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    for k, n in enumerate((6, 3)):
        batch: data.Batch = {
            "images": torch.rand(n, 3, 128, 128),
            "thing": torch.from_numpy(rng.integers(0, 2, (n, 128, 128), dtype=np.uint8)),
            "depth": torch.from_numpy(rng.random((n, 64, 64))).half(),
            "mark": torch.zeros(n, 3, dtype=torch.int16),
            "scenes": [sample_scene(rng) for _ in range(n)],
        }
        data.write_shard(folder / f"train-{k:05d}.safetensors", [batch])
    return folder


def opened(folder: Path, seed: int = 0) -> data.Shards:
    found = data.Shards(folder, seed=seed)
    found.latents = [torch.arange(9.0)[a:b].view(-1, 1, 1, 1).expand(-1, 4, 16, 16).half() for a, b in ((0, 6), (6, 9))]
    return found


@pytest.fixture
def pooled(shards, monkeypatch):
    def here(work, jobs, processes, words):
        for job in jobs:
            work(job)

    monkeypatch.setattr(pool, "_each_process", here)
    return lambda seed=0, count=3: pool.Pool(opened(shards), count, seed)


def test_a_pool_draws_by_seed_and_step_only(pooled):
    one, again, other = pooled(), pooled(), pooled(seed=1)
    for name in ("latents", "tokens", "thing", "labels", "depth"):
        a, b = (getattr(x.pick(5, 32, 0.1), name) for x in (one, again))
        assert torch.equal(a, b), name
    assert not torch.equal(one.pick(5, 32, 0.1).tokens, one.pick(6, 32, 0.1).tokens)
    assert not torch.equal(one.pick(5, 32, 0.1).latents, other.pick(5, 32, 0.1).latents)
    drawn = one.pick(0, 500, 0.0)
    assert set(drawn.latents[:, 0, 0, 0].tolist()) == set(range(9))


def test_a_pool_gives_each_image_what_is_its_own(pooled, shards):
    from sfumato.stilllife.captions import parse

    one, found = pooled(), opened(shards)
    drawn = one.pick(3, 200, 0.25)
    at = drawn.latents[:, 0, 0, 0].long().numpy()
    scenes = [found.scene(int(i)) for i in at]
    whole = found.rows("thing", at)
    assert torch.equal(drawn.thing, whole[:, 4::8, 4::8])
    torch.testing.assert_close(drawn.depth, found.rows("depth", at).float())
    assert torch.equal(drawn.labels, pool.labels(scenes))
    words = networks.tokenizer().batch_decode(drawn.tokens, skip_special_tokens=True)
    assert 0.15 < np.mean([w == "" for w in words]) < 0.35
    for text, scene in zip(words, scenes, strict=True):
        if text:
            assert {t.kind for t in parse(text).things} <= {t.kind for t in scene.things}
    of_first = {w for w, i in zip(words, at, strict=True) if i == 0 and w}
    assert 1 < len(of_first) <= 3
    frozen_tokens = networks.tokenizer()([""], padding="max_length", max_length=77, return_tensors="pt").input_ids[0]
    assert torch.equal(one.empty.long(), frozen_tokens)


def test_captions_are_worded_once_a_number_and_seed(pooled, monkeypatch, shards):
    pooled()
    before = {f: f.stat().st_mtime_ns for f in shards.glob("captions-3-0-*/*")}
    assert len(before) == 2
    monkeypatch.setattr(pool, "_write", None)  # not needed again
    pooled()
    assert before == {f: f.stat().st_mtime_ns for f in shards.glob("captions-3-0-*/*")}


def test_labels_number_kinds_colours_and_views_from_one():
    from sfumato.stilllife.kinds import TRAINED
    from sfumato.stilllife.scene import COLOURS, VIEWS, view

    shown = [sample_scene(np.random.default_rng(7), count=1, view=v) for v in VIEWS]
    assert pool.labels(shown)[:, 2, 1].tolist() == [1, 2, 3, 4]
    scenes = [sample_scene(np.random.default_rng(k), count=1 + k) for k in range(3)]
    told = pool.labels(scenes)
    assert told.shape == (3, 3, 4) and not told[:, :, 0].any()
    views = [[view(s, k) for k in range(len(s.things))] for s in scenes]
    assert any(None in v for v in views)
    assert [[(None, *VIEWS)[k] for k in row[2, 1 : 1 + len(v)]] for row, v in zip(told, views, strict=True)] == views
    for row, scene in zip(told, scenes, strict=True):
        n = len(scene.things)
        assert [TRAINED[k - 1] for k in row[0, 1 : n + 1]] == [t.kind for t in scene.things]
        assert [COLOURS[k - 1] for k in row[1, 1 : n + 1]] == [t.colour for t in scene.things]
        assert row[:2, 1 : n + 1].all() and not row[:, n + 1 :].any()


def test_rare_scenes_are_drawn_as_rarely_as_asked(pooled, shards):
    found = opened(shards)
    scenes = [found.scene(i) for i in range(len(found))]
    odds = np.array([unet.common(0.5, s) for s in scenes])
    assert len(set(odds)) > 3
    many = 40_000
    for preferred in (found.prefer(functools.partial(unet.common, 0.5)), opened(shards).prefer(lambda s: 1.0)):
        wanted = odds / odds.sum() if preferred is found else np.full(9, 1 / 9)
        seen = np.bincount(preferred.pick(1, many), minlength=9) / many
        drawn = pool.Pool(preferred, 3).pick(1, many, 0.0).latents[:, 0, 0, 0].long()
        np.testing.assert_allclose(seen, wanted, atol=5 * np.sqrt(0.25 / many))
        np.testing.assert_allclose(np.bincount(drawn, minlength=9) / many, wanted, atol=5 * np.sqrt(0.25 / many))


def test_how_common_a_scene_is():
    from dataclasses import replace

    things = sample_scene(np.random.default_rng(0), count=2).things
    plain = replace(
        sample_scene(np.random.default_rng(0), count=2),
        things=tuple(replace(t, material="plain") for t in things),
        light="day",
        style="photo",
    )
    striped = replace(plain, things=(replace(things[0], material="striped"), replace(things[1], material="plain")))
    one, two = (unet.COUNTS[k] for k in (0, 1))
    assert unet.common(0.25, plain) == two
    assert unet.common(0.25, replace(plain, light="night")) == pytest.approx(two * 0.25)
    assert unet.common(0.25, replace(plain, style="mosaic", light="fog")) == pytest.approx(two * 0.25**2)
    assert unet.common(0.25, striped) == pytest.approx(two * 0.5)
    assert unet.common(0.25, replace(plain, things=plain.things[:1])) == one


@pytest.mark.filterwarnings("ignore:Dynamo detected")
def test_labels_and_cells_tell_the_layout_what_scenes_and_masks_tell(shards):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"), block_out_channels=(16, 16), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=16, attention_head_dim=2, mid_block_type=None,
    )  # fmt: skip
    layout = unet.Layout(model)
    scenes = [sample_scene(np.random.default_rng(k), count=2) for k in range(2)]
    thing = torch.randint(0, 3, (2, 128, 128), dtype=torch.uint8)
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([10, 20]), torch.randn(2, 5, 16)
    model(*inputs)
    long = layout.loss(thing, scenes)
    model(*inputs)
    assert torch.equal(layout.loss(thing[:, 4::8, 4::8], pool.labels(scenes)), long)

    # the compiled form is the same function, and the features that the layout reads still teach the network
    forward = gpu.compiled(model, *inputs, backend="aot_eager")
    layout.forget()
    assert forward is not model and all(p.grad is None for p in model.parameters())
    forward(*inputs)
    again = layout.loss(thing, scenes)
    torch.testing.assert_close(again, long)
    again.backward()
    assert model.down_blocks[0].resnets[0].conv1.weight.grad.abs().max() > 0  # pyright: ignore


def test_without_a_compiler_the_network_runs_as_it_is(monkeypatch, capsys):
    model = nn.Linear(2, 2)

    def broken(*args, **kwargs):
        def call(*inputs):
            raise RuntimeError("Failed to find C compiler. Please specify via CC\nand so on")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    assert gpu.compiled(model, torch.zeros(1, 2)) is model
    told = capsys.readouterr().err
    assert "not compiled" in told and "Failed to find C compiler" in told and "and so on" not in told

    def short(*args, **kwargs):
        def call(*inputs):
            raise torch.OutOfMemoryError("no memory")

        return call

    monkeypatch.setattr(torch, "compile", short)
    with pytest.raises(torch.OutOfMemoryError):  # the batch must be halved, not the speed
        gpu.compiled(model, torch.zeros(1, 2))


def test_a_device_holds_whole_fields(shards):
    found = data.Shards(shards, device="meta")
    some = found.rows("images", np.array([0, 8]))
    assert some.device.type == "meta" and some.shape == (2, 3, 128, 128) and some.dtype == torch.uint8
    assert found.whole("images") is found.whole("images") and found.whole("images").shape[0] == 9
    assert found.rows("mark", np.array([0, 8])).device.type == "cpu"


# What is packed


@pytest.fixture(scope="module")
def some():
    """Two of the networks that ship."""
    out = {}
    for name in ("oracle", "vae"):
        file = weights.path(f"{name}.safetensors")
        from safetensors import safe_open

        with safe_open(file, "pt") as f:
            out[name] = ship.Network(json.loads((f.metadata() or {})["config"]), load_file(file))
    return out


LIMIT = 2 * 2**20


def test_packed_files_are_small_and_give_the_networks_back(some, tmp_path):
    files = ship.pack(some, tmp_path, LIMIT)
    assert [f.name for f in files] == [f"networks-{i:05d}-of-{len(files):05d}.safetensors" for i in (1, 2, 3, 4)]
    assert all(LIMIT / 2 < f.stat().st_size <= LIMIT for f in files[:-1]) and files[-1].stat().st_size <= LIMIT
    found = ship.unpack(tmp_path)
    assert list(found) == list(some)
    for name, network in some.items():
        assert found[name].config == network.config
        assert set(found[name].tensors) == set(network.tensors)
        assert all(torch.equal(found[name].tensors[k], v) for k, v in network.tensors.items())
    ship.pack({"oracle": some["oracle"]}, tmp_path)  # a later pack leaves nothing of the earlier one
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 and list(ship.unpack(tmp_path)) == ["oracle"]


def test_the_weights_that_ship_fit_in_the_files_that_come_back():
    total = sum(row["bytes"] for row in weights.manifest().values())
    assert -(-ship.BUDGET // (ship.SHARD - ship._HEADER)) + 2 <= 8  # with the report and the sheet of previews
    assert total <= ship.BUDGET


def test_what_is_not_whole_is_refused(some, tmp_path):
    with pytest.raises(SfumatoError, match="no packed networks"):
        ship.unpack(tmp_path)
    files = ship.pack(some, tmp_path, LIMIT)
    whole = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(SfumatoError, match=r"00002-of-00004\.safetensors is missing"):
        ship.unpack(tmp_path)
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    files[1].write_bytes(flipped)
    with pytest.raises(SfumatoError, match=r"00002-of-00004.safetensors is damaged: its SHA-256"):
        ship.unpack(tmp_path)
    files[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SfumatoError, match=r"00002-of-00004\.safetensors is damaged"):
        ship.unpack(tmp_path)
    other = {k: n._replace(tensors={x: v * 0.5 for x, v in n.tensors.items()}) for k, n in some.items()}
    ship.pack(other, tmp_path / "other", LIMIT)
    files[1].write_bytes((tmp_path / "other" / files[1].name).read_bytes())
    with pytest.raises(SfumatoError, match="of another run"):
        ship.unpack(tmp_path)


def test_networks_that_cannot_ship_are_refused(some, tmp_path):
    vae = some["vae"]
    first = next(iter(vae.tensors))

    def refused(networks, match):
        ship.pack(networks, tmp_path)
        with pytest.raises(SfumatoError, match=match):
            ship.unpack(tmp_path)

    refused({"dream": vae}, "unknown network 'dream'; what ships: unet")
    refused({"vae": vae._replace(config={**vae.config, "latent_channels": 8})}, "not those that its configuration asks")
    refused({"vae": vae._replace(tensors={k: v for k, v in vae.tensors.items() if k != first})}, "not those that its")
    refused(
        {"oracle": some["oracle"]._replace(config={"depth": 3})}, "configuration of oracle is not one that is known"
    )
    config = ship.plain(networks.unet(8).config)
    whole = {"conv_in.weight": torch.zeros(64, 8, 3, 3), "conv_out.bias.change": torch.zeros(4)}
    ship.pack({"instruct": ship.Network(config, whole)}, tmp_path)
    assert set(ship.unpack(tmp_path)["instruct"].tensors) == set(whole)
    for wrong in ({"conv_out.bias.change": torch.zeros(4)}, {**whole, "a.change": torch.zeros(2)}):
        refused({"instruct": ship.Network(config, wrong)}, "weights of instruct")
    bad = {**vae.tensors, first: torch.full_like(vae.tensors[first], torch.inf)}
    with pytest.raises(SfumatoError, match="not finite"):
        ship.pack({"vae": vae._replace(tensors=bad)}, tmp_path)
    big = ship.Network({}, {"x": torch.zeros(ship.SHARD)})
    with pytest.raises(SfumatoError, match="more than a file"):
        ship.pack({"vae": big}, tmp_path)


def test_ship_takes_up_a_folder_and_leaves_the_rest(some, tmp_path, monkeypatch):
    place = tmp_path / "weights"
    place.mkdir()
    (place / "unet.safetensors").write_bytes(weights.path("unet.safetensors").read_bytes())
    new = some["vae"]._replace(tensors={k: v * 0.5 for k, v in some["vae"].tensors.items()})
    ship.pack({"vae": new, "oracle": some["oracle"]}, tmp_path / "packed", LIMIT)
    monkeypatch.setattr(sys, "argv", ["ship", "--from", str(tmp_path / "packed"), "--out", str(place)])
    assert ship.main() == 0
    listed = weights.manifest(place)
    shipped = weights.manifest()
    assert listed["unet.safetensors"] == shipped["unet.safetensors"]
    assert listed["oracle.safetensors"]["parameters"] == shipped["oracle.safetensors"]["parameters"]
    monkeypatch.setattr(weights, "folder", lambda: place)
    read = weights.module("vae").state_dict()
    assert all(torch.equal(read[k], v.float()) for k, v in new.tensors.items())
    from sfumato.stilllife.oracle import Oracle

    assert Oracle.load() is not None and weights.module("unet") is not None


def test_a_folder_that_is_damaged_changes_nothing_of_what_ships(some, tmp_path, monkeypatch, capsys):
    ship.pack(some, tmp_path / "packed", LIMIT)
    next((tmp_path / "packed").glob("*00003-of*")).unlink()
    monkeypatch.setattr(sys, "argv", ["ship", "--from", str(tmp_path / "packed"), "--out", str(tmp_path / "weights")])
    assert ship.main() == 2
    assert not (tmp_path / "weights").exists()
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1


# The command line, and a rehearsal on a machine that has nothing else


def test_the_command_line_names_the_stages(tmp_path, capsys):
    argv = ["all", "--out", str(tmp_path), "--device", "cpu", "--shares", "unets=1"]
    assert __main__.main(argv) == 2
    assert (
        capsys.readouterr().err
        == f"error: unknown stage 'unets'; did you mean unet? known: {', '.join(everything.SHARES)}\n"
    )


@pytest.mark.parametrize("command", ["start", "status", "stop", "ship"])
def test_the_background_run_has_its_commands(command, capsys):
    with pytest.raises(SystemExit) as end:
        __main__.main(["background", command, "--help"])
    assert end.value.code == 0 and f"background {command}" in capsys.readouterr().out


def test_what_travels_is_small():
    """With 6.4 MiB of wheels, less than 60 (docs/stilllife/gpu.md)."""
    package = Path(everything.__file__).parents[2]
    sizes = {f: f.stat().st_size for f in package.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    home = {weights.folder() / f"{stage}.safetensors" for stage in everything.RELATIVES}
    assert home < set(sizes)
    assert sum(size for f, size in sizes.items() if f not in home) < 45 * 2**20
    assert sum(size for f, size in sizes.items() if f.suffix != ".safetensors") < 6 * 2**20


BARE = """
import sys
from importlib import metadata
from importlib.machinery import PathFinder
from importlib.metadata import DistributionFinder
from packaging.requirements import Requirement

def needs(names):
    found, todo = set(), list(names)
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        for line in asked:
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                todo.append(one.name)
    return found

ALLOWED = needs(STATED)
OWNERS = metadata.packages_distributions()
DENIED = {
    top for top, owners in OWNERS.items()
    if top != "sfumato" and not ALLOWED & {o.lower().replace("_", "-") for o in owners}
}
assert {"matplotlib", "pytest", "hypothesis"} <= DENIED and not {"torch", "numpy", "PIL"} & DENIED

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in DENIED else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context=DistributionFinder.Context()):
        kept = ALLOWED | {"sfumato"}
        for found in super().find_distributions(context):
            if found.metadata["Name"].lower().replace("_", "-") in kept:
                yield found

sys.meta_path[:] = [Bare if f is PathFinder else f for f in sys.meta_path]

import socket

def offline(*args, **kwargs):
    raise OSError("this machine has no network")

socket.socket.connect = socket.getaddrinfo = offline
"""
IMPORTS = """
from importlib import import_module
from pkgutil import iter_modules
from sfumato.stilllife import train

for module in iter_modules(train.__path__, "sfumato.stilllife.train."):
    import_module(module.name)
"""
RUN = """
from sfumato.stilllife.train import __main__, judge, unet

judge.STEPS = 2  # paintings of noise, but painted
unet.PROMPTS = unet.PROMPTS[:1]
sys.exit(__main__.main(sys.argv[1:]))
"""
STATED = ["torch", "numpy", "scipy", "pillow", "safetensors", "diffusers", "transformers", "tyro", "rich", "jaxtyping"]


def test_a_bare_machine_has_all_that_trainers_import():
    script = f"STATED = {STATED!r}\n{BARE}{IMPORTS}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_bare_machine_runs_it_all(tmp_path):
    """Real trainers, real networks, a step each, without a network or a package beyond the stated ones."""
    out = tmp_path / "out"
    argv = ["all", "--device", "cpu", "--threads", "1", "--steps", "1", "--images", "8", "--batch", "2", "--n", "1"]
    argv += ["--captions", "2", "--out", str(out), "--data", str(tmp_path / "data")]
    script = f"STATED = {STATED!r}\n{BARE}{RUN}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((out / "report.json").read_text(encoding="utf-8"))
    states = {r["stage"]: (r["state"], r["steps"]) for r in told["stages"]}
    assert states.pop("words") == ("skipped", None)
    assert states.pop("render") == states.pop("bench") == ("finished", None)
    assert states == {k: ("finished", 1) for k in ("vae", "clip", "oracle", "unet", "instruct", "depth")}
    assert set(told["bench"]) == {"shipped", "trained"} and told["bench"]["shipped"]["error"] < 0.2
    assert {"single", "pair", "view"} <= set(told["bench"]["trained"])

    names = sorted(f.name for f in (out / "ship").iterdir())
    assert names == [*told["packed"], "previews.png", "report.json"] and len(names) <= 8
    assert max(f.stat().st_size for f in (out / "ship").iterdir()) <= 15 * 2**20
    found = ship.unpack(out / "ship")
    assert set(found) == set(ship.SHIPPED)
    assert not list(tmp_path.rglob("*.part*"))
    assert len(list((tmp_path / "data").glob("captions-2-0-*/*.safetensors"))) == 1  # the pool was drawn from
    assert Scene.from_json((tmp_path / "data" / "train-00000.jsonl").read_text(encoding="utf-8").splitlines()[0])
