"""The training loop, the shards and the trainers' own pieces, on networks of a few hundred weights."""

from __future__ import annotations

import json
import os
import signal
import socket

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sfumato.errors import SfumatoError
from sfumato.stilllife.scene import Scene, sample_scene
from sfumato.stilllife.train import (
    DataOptions,
    Options,
    __main__,
    data,
    decoder,
    judge,
    loop,
    optimise,
    precision,
    unet,
    vae,
)
from sfumato.stilllife.train.attention import SmallHeads


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def fit(out, model=None, at=None, **options):
    """Train a small regression with noise from the global generator; ``at`` maps a step to something to do in it."""
    model = model or net()

    def step(i):
        x = torch.from_numpy(np.random.default_rng(i).normal(size=(16, 4))).float()
        if at and i in at:
            at[i]()
        noisy = x + 0.1 * torch.randn_like(x)
        return (model(noisy) - x.sum(1, keepdim=True)).square().mean(), {"seen": 1.0}

    options = {"minutes": 1, "rate": 1e-2, "batch": 16, "warmup": 2, "log_every": 5} | options
    return model, loop.train("tiny", {"net": model}, step, out=out, **options)["net"]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def stop():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("optimiser", ["adam", "muon"])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, optimiser):
    whole, ema = fit(tmp_path / "a", steps=10, optimiser=optimiser)
    with pytest.raises(KeyboardInterrupt, match="step 5"):
        fit(tmp_path / "b", steps=10, optimiser=optimiser, at={4: stop})
    torch.manual_seed(99)  # what happens between the runs does not matter
    again, ema_again = fit(tmp_path / "b", steps=10, optimiser=optimiser, resume=True)
    assert same(whole, again) and same(ema, ema_again)
    assert not same(whole, net())
    strip = [[{k: r[k] for k in ("step", "loss", "rate")} for r in loop.read_log(tmp_path / x)] for x in "ab"]
    assert strip[0] == strip[1] and [r["step"] for r in strip[0]] == [5, 10]


def test_a_channels_last_run_resumes_to_the_same_bits(tmp_path):
    def run(out, steps, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3)).to(memory_format=torch.channels_last)
        options |= {"minutes": 1, "rate": 1e-2, "batch": 4, "steps": steps, "cooldown": 0.0}
        loop.train(
            "conv", {"net": model}, lambda i: (model(torch.randn(4, 3, 8, 8)).square().mean(), {}), out=out, **options
        )
        return model

    run(tmp_path / "b", 5)
    assert same(run(tmp_path / "a", 10), run(tmp_path / "b", 10, resume=True))


def test_checkpoints_are_safetensors_only_and_nothing_is_left_beside(tmp_path):
    fit(tmp_path, steps=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "log.jsonl"]
    names = set(load_file(tmp_path / "checkpoint.safetensors"))
    assert {"live.net.0.weight", "ema.net.0.weight", "moments.net.0.weight.exp_avg_sq"} <= names


def test_ema_follows_its_formula(tmp_path):
    model = nn.Linear(1, 1, bias=False)
    path = [model.weight.item()]

    def step(i):
        if i:
            path.append(model.weight.item())
        return model(torch.ones(1, 1)).square().sum(), {}

    kept = loop.train("line", {"net": model}, step, out=tmp_path, minutes=1, rate=0.1, batch=1, steps=6, ema=0.5)
    path.append(model.weight.item())
    expected = path[0]
    for i, value in enumerate(path[1:]):
        decay = min(0.5, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * value
    assert float(kept["net"].weight) == pytest.approx(expected, rel=1e-5)
    assert len(set(path)) == 7


def test_the_rate_warms_up_and_falls_to_nothing(tmp_path):
    fit(tmp_path, steps=40, log_every=1, warmup=10, rate=1.0)
    rates = [r["rate"] for r in loop.read_log(tmp_path)]
    assert rates[0] == pytest.approx(0.1) and max(rates) < 1 and rates[-1] < 0.01
    assert rates.index(max(rates)) in range(8, 12)


def test_the_rate_stays_until_it_cools_down(tmp_path):
    fit(tmp_path / "a", steps=40, log_every=1, warmup=4, rate=1.0, cooldown=0.25)
    rates = [r["rate"] for r in loop.read_log(tmp_path / "a")]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0]) and rates[3:31] == [1.0] * 28
    assert rates[31:] == pytest.approx([1 - (k / 10) ** 0.5 for k in range(1, 10)], abs=1e-6)
    fit(tmp_path / "b", steps=40, log_every=1, warmup=4, rate=1.0, cooldown=0.0)
    assert [r["rate"] for r in loop.read_log(tmp_path / "b")][3:] == [1.0] * 37


def test_runs_at_a_constant_rate_join_without_a_seam(tmp_path):
    whole, ema = fit(tmp_path / "a", steps=10, cooldown=0.0)
    fit(tmp_path / "b", steps=4, cooldown=0.0)
    again, ema_again = fit(tmp_path / "b", steps=10, cooldown=0.0, resume=True)
    assert same(whole, again) and same(ema, ema_again)


def test_time_is_a_budget_too(tmp_path, monkeypatch):
    clock = iter(float(k) for k in range(10_000))  # a second a look
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    model, _ = fit(tmp_path, minutes=0.5)
    last = loop.read_log(tmp_path)[-1]
    assert 30 <= last["elapsed"] <= 33 and 5 < last["step"] < 30
    before = {k: v.clone() for k, v in model.state_dict().items()}
    again, _ = fit(tmp_path, minutes=0.5, resume=True)  # the time is used up
    assert all(torch.equal(v, before[k]) for k, v in again.state_dict().items())


def test_frozen_weights_stay(tmp_path):
    model = net()
    model[0].requires_grad_(False)
    first = model[0].weight.clone()
    _, ema = fit(tmp_path, model, steps=5)
    assert torch.equal(model[0].weight, first) and torch.equal(ema[0].weight, first)


def test_a_run_is_not_overwritten_by_accident(tmp_path):
    fit(tmp_path, steps=2)
    with pytest.raises(SfumatoError, match="--resume"):
        fit(tmp_path, steps=2)


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"x" * 100])
def test_a_damaged_checkpoint_is_refused(tmp_path, spoil):
    fit(tmp_path, steps=2)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(SfumatoError, match="cannot go on"):
        fit(tmp_path, steps=4, resume=True)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    fit(tmp_path, steps=2)
    with pytest.raises(SfumatoError, match="another network"):
        fit(tmp_path, nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 1)), steps=4, resume=True)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(SfumatoError, match="not finite"):
        loop.train(
            "bad", {"net": model}, lambda i: (model(torch.full((1, 1), torch.inf)).sum(), {}),
            out=tmp_path, minutes=1, rate=1.0, batch=1, steps=3,
        )  # fmt: skip
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_an_unknown_device_is_refused():
    with pytest.raises(SfumatoError, match="nonsense"):
        loop.start(Options(device="nonsense"))


def line(out, step, **options):
    """Train one linear layer on a loss that ``step`` makes of the layer; the trained weights."""
    model = nn.Linear(4, 1)
    settings = {"minutes": 1, "rate": 1e-2, "batch": 8, "steps": 6, "warmup": 2} | options
    loop.train("line", {"net": model}, lambda i: (step(model, i), {}), out=out, **settings)
    return load_file(out / "checkpoint.safetensors")["live.net.weight"]


def error(model, i):
    x = torch.from_numpy(np.random.default_rng(i).normal(size=(8, 4))).float()
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def one_of_two(rank, out, port):
    """As ``torchrun`` would start it."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # the second process starts elsewhere and must be told
    line(out / "two", error)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (tmp_path, port), nprocs=2)
    torch.manual_seed(0)
    alone = line(tmp_path / "one", lambda model, i: (error(model, 2 * i) + error(model, 2 * i + 1)) / 2)
    both = load_file(tmp_path / "two" / "checkpoint.safetensors")["live.net.weight"]
    torch.testing.assert_close(both, alone, atol=1e-6, rtol=1e-5)
    assert [r["step"] for r in loop.read_log(tmp_path / "two")] == [6]


def test_the_report_tells_the_run(tmp_path):
    args = Options(out=tmp_path / "run", report=tmp_path / "docs", device="cpu", seed=5)
    _, ema = fit(args.place("tiny"), steps=20)
    text = loop.report("tiny", args, {"net": ema}, 16, {"accuracy": 0.5}).read_text(encoding="utf-8")
    assert "20 steps of 16 images" in text and "accuracy: 0.5" in text and "seed 5" in text


# Optimisers and arithmetic


def test_muon_is_torch_s_own_on_matrices_and_takes_convolutions_as_matrices():
    torch.manual_seed(0)
    start, slopes = torch.randn(12, 18), [torch.randn(12, 18) for _ in range(3)]
    theirs, ours, conv = (nn.Parameter(start.clone().view(shape)) for shape in ((12, 18), (12, 18), (12, 2, 3, 3)))
    own = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    mine = optimise.Muon([ours, conv], lr=0.1, weight_decay=0.2)
    for slope in slopes:
        for p in (theirs, ours, conv):
            p.grad = slope.view(p.shape).clone()
        own.step()
        mine.step()
    assert torch.equal(conv.view(12, 18), ours)
    moved = (ours - start).norm()
    assert moved > 1 and (ours - theirs).norm() < 0.02 * moved  # theirs rounds to bf16, 2^-8, at every product


@pytest.mark.parametrize("shape", [(3, 10, 24), (2, 24, 10), (1, 6, 6)])
def test_orthogonal_matrices_have_even_singular_values(shape):
    torch.manual_seed(1)
    matrices = torch.randn(shape)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    kept = u.mT @ optimise.orthogonal(matrices) @ v.mT  # the singular values, where the vectors are the same
    found = kept.diagonal(dim1=1, dim2=2)
    assert found.min() > 0.6 and found.max() < 1.25 and s.max() > 2
    torch.testing.assert_close(kept, torch.diag_embed(found), atol=1e-4, rtol=0)


def test_gains_and_biases_are_adam_s_and_never_decay():
    several = optimise.optimisers(net().parameters(), "muon", 1e-3, 0.5, (0.9, 0.99))
    groups = [
        (type(o).__name__, g["weight_decay"], {p.ndim for p in g["params"]}) for o in several for g in o.param_groups
    ]
    assert groups == [("Muon", 0.5, {2}), ("AdamW", 0.0, {1})]


def test_the_faster_arithmetic_is_chosen(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(precision, "_chosen", {})
    monkeypatch.setattr(precision, "_why", {})
    took = {torch.bfloat16: 10.0, torch.float32: 1.0}
    monkeypatch.setattr(precision, "_seconds", lambda dtype: took[dtype])
    x = torch.randn(4, 4)
    with precision.autocast(cpu):
        assert (x @ x).dtype == torch.float32
    assert precision.explained(cpu) == "float32 (bf16 was measured to be 0.1 times as fast as float32)"
    took[torch.bfloat16] = 0.5
    precision.choose(cpu)
    with precision.autocast(cpu):
        assert (x @ x).dtype == torch.bfloat16
    precision.choose(cpu, "float32")
    assert precision.fastest(cpu) == torch.float32


# Shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards of 8 and 4 images, the image's number in its pixels."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for k, (start, n) in enumerate(((0, 8), (8, 4))):
        numbers = torch.arange(start, start + n)
        batch: data.Batch = {
            "images": (numbers / 255).view(-1, 1, 1, 1).expand(n, 3, 128, 128),
            "thing": torch.zeros(n, 128, 128, dtype=torch.uint8),
            "depth": torch.full((n, 64, 64), 3.0, dtype=torch.float16),
            "mark": torch.zeros(n, 3, dtype=torch.int16),
            "scenes": [sample_scene(rng) for _ in range(n)],
        }
        data.write_shard(folder / f"train-{k:05d}.safetensors", [batch])
        data.write_shard(folder / f"val-{k:05d}.safetensors", [batch])
    return folder


def test_shards_give_back_what_was_written(shards):
    found = data.Shards(shards)
    assert len(found) == 12
    batch = found.take(np.array([0, 7, 8, 11]))
    torch.testing.assert_close(batch["images"][:, 0, 0, 0] * 255, torch.tensor([0.0, 7.0, 8.0, 11.0]))
    lines = (shards / "train-00001.jsonl").read_text(encoding="utf-8").splitlines()
    assert batch["scenes"][2] == Scene.from_json(lines[0])


def test_batches_depend_on_step_and_seed_only(shards):
    found, other = data.Shards(shards, seed=1), data.Shards(shards, seed=2)
    assert (found.pick(3, 64) == data.Shards(shards, seed=1).pick(3, 64)).all()
    assert (found.pick(3, 64) != found.pick(4, 64)).any() and (found.pick(3, 64) != other.pick(3, 64)).any()
    assert set(found.pick(0, 500)) == set(range(12))


def test_without_shards_the_error_says_how_to_render_them(tmp_path):
    with pytest.raises(SfumatoError, match="train data"):
        data.source(Options(data=tmp_path), torch.device("cpu"))


def test_latents_are_made_once_a_vae(shards, monkeypatch):
    torch.manual_seed(0)
    from diffusers import AutoencoderKL

    def small():
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        return AutoencoderKL(**blocks, block_out_channels=(4,) * 4, norm_num_groups=2).eval()

    first = small()
    found = data.encode_shards(data.Shards(shards), first)
    x = found.take(np.array([9]))["images"]
    expected = first.encode(x * 2 - 1).latent_dist.mean * 0.18215
    torch.testing.assert_close(found.rows("latents", np.array([9])).float(), expected, atol=2e-2, rtol=2e-2)
    with monkeypatch.context() as patch:
        patch.setattr(data, "latents", None)  # not needed again
        data.encode_shards(data.Shards(shards), first)
    data.encode_shards(data.Shards(shards), small())
    assert len(list(shards.glob("latents-*"))) == 2


def test_rendered_batches_hold_their_truth():
    batch = data.render_batch(np.random.default_rng(0), 4, "cpu")
    assert batch["images"].shape == (4, 3, 128, 128) and 0 <= batch["images"].min() <= batch["images"].max() <= 1
    assert len({s.camera for s in batch["scenes"]}) == 1  # one geometry
    assert len({(s.ground, s.light, s.style, s.seed) for s in batch["scenes"]}) == 4
    things = len(batch["scenes"][0].things)
    assert set(batch["thing"].unique().tolist()) == set(range(things + 1))
    depth = batch["depth"]
    assert depth.shape == (4, 64, 64) and depth.isfinite().all() and depth[batch["thing"][:, ::2, ::2] > 0].min() > 0


def test_marks_count_the_face_from_the_front_only():
    from dataclasses import replace

    from sfumato.stilllife import render

    scene = sample_scene(np.random.default_rng(1), count=1, kinds=("robot",), view="front")
    behind = scene.with_thing(0, yaw=scene.things[0].yaw + 180)
    truth = render.labels(render.trace([scene, behind]))
    seen = data.marks([scene, behind], truth["thing"], truth["part"])
    assert seen[0, 0] > 20 and seen[1, 0] == 0 and not seen[:, 1:].any()
    ball = replace(scene, things=(sample_scene(np.random.default_rng(2), count=1, kinds=("sphere",)).things[0],))
    assert not data.marks([ball], *(render.labels(render.trace([ball]))[k] for k in ("thing", "part"))).any()


def test_rendering_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PER_SHARD", 2)
    done: list[str] = []

    def here(work, jobs, processes, words):
        for job in jobs:
            work(job)
            done.append(job[0].name)

    monkeypatch.setattr(data, "_each_process", here)
    data.run(DataOptions(images=4, val=2, pairs=2, out=tmp_path))
    assert done == [
        "train-00000.safetensors",
        "train-00001.safetensors",
        "val-00000.safetensors",
        "pairs-00000.safetensors",
    ]
    old = (tmp_path / "train-00001.safetensors").read_bytes()
    (tmp_path / "train-00001.safetensors").unlink()
    done.clear()
    data.run(DataOptions(images=4, val=2, pairs=2, out=tmp_path))
    assert done == ["train-00001.safetensors"] and (tmp_path / "train-00001.safetensors").read_bytes() == old
    first, val, pairs = (data.Shards(tmp_path, s) for s in data.SPLITS)
    assert first.line(0) != val.line(0)
    assert pairs.rows("images", np.array([0])).shape == (1, 2, 3, 128, 128)
    assert {"instruction", "captions"} == set(json.loads(pairs.line(0)))


# Trainers


def test_crops_and_whole_images_take_turns(shards):
    found = data.Shards(shards)
    crops, whole = (vae.pixels(found, i, 16, 0) for i in (0, 1))
    assert crops.shape == (16, 3, 64, 64) and whole.shape == (4, 3, 128, 128)


def test_crops_keep_what_repeats_with_the_latents():
    cell = torch.arange(64).view(1, 1, 8, 8) / 64
    where = torch.arange(256).view(1, 1, 16, 16).repeat_interleave(8, 2).repeat_interleave(8, 3)

    class Tiled:
        def batch(self, step, size):
            return {"images": torch.cat([cell.repeat(1, 1, 16, 16), where], 1).expand(size, 2, 128, 128)}

    crops = vae.pixels(Tiled(), 0, 32, 0)
    assert torch.equal(crops[:, 0], cell.repeat(1, 1, 8, 8)[0].expand(32, 64, 64))
    assert len(crops[:, 1, 0, 0].unique()) > 10  # from many places


def test_noise_levels_cover_the_schedule_and_weigh_by_snr():
    from sfumato.stilllife import networks

    noisy = unet.noiser(torch.device("cpu"), "min-snr")(torch.zeros(100, 4, 2, 2))
    assert (noisy.t // 10 == torch.arange(100)).all()
    alphas = networks.scheduler().alphas_cumprod[noisy.t]
    torch.testing.assert_close(noisy.z, (1 - alphas).sqrt().view(-1, 1, 1, 1) * noisy.noise)
    snr = alphas / (1 - alphas)
    torch.testing.assert_close(noisy.weight, snr.clamp(max=5) / snr)
    assert float(noisy.loss(noisy.noise)) == 0


def test_even_weights_give_every_level_its_part():
    from sfumato.stilllife import networks

    noisy = unet.noiser(torch.device("cpu"), "even")(torch.zeros(1000, 4, 2, 2))
    alphas = networks.scheduler().alphas_cumprod[noisy.t]
    root = (alphas / (1 - alphas)).sqrt()
    part = noisy.weight * root  # of a loss that goes as the root of SNR
    torch.testing.assert_close(part, part[:1].expand(1000), rtol=1e-4, atol=0)
    assert float(noisy.weight.mean()) == pytest.approx(1, rel=1e-3)


class Blind(nn.Module):
    """Says that there is no noise."""

    def forward(self, x, t, said):
        return type("Told", (), {"sample": torch.zeros_like(x)})()


def test_cells_weigh_as_they_are_told():
    noisy = unet.noiser(torch.device("cpu"), "min-snr")(torch.zeros(3, 4, 2, 2))
    wrong = noisy.noise.clone()
    wrong[:, :, 0, 0] += 2.0
    cells = torch.ones(3, 1, 2, 2)
    cells[1, :, 0, 0] = 0.0
    cells[2, :, 0, 0] = 3.0
    torch.testing.assert_close(noisy.loss(wrong, cells), (noisy.weight * torch.tensor([1.0, 0.0, 3.0])).mean())
    assert noisy.loss(wrong) == noisy.loss(wrong, torch.ones(3, 1, 2, 2))


def test_a_pair_comes_with_its_own_instruction(tmp_path, monkeypatch):
    from sfumato.stilllife.train import instruct

    for k, start in enumerate((0, 70)):  # more than are embedded at once
        save_file({"images": torch.zeros(70, 2, 3, 8, 8, dtype=torch.uint8)}, tmp_path / f"pairs-{k:05d}.safetensors")
        lines = [json.dumps({"instruction": f"turn it {i}"}) + "\n" for i in range(start, start + 70)]
        (tmp_path / f"pairs-{k:05d}.jsonl").write_text("".join(lines), encoding="utf-8")

    def encoded(shards, vae):
        before = torch.arange(140.0).view(-1, 1, 1, 1).expand(-1, 4, 2, 2)
        shards.latents = list(torch.stack([before, before + 0.5], 1).half().split(70))
        return shards

    class Reader:
        device = torch.device("cpu")
        vae = None

        @staticmethod
        def embed(words):
            return torch.tensor([[[float(w.split()[-1])]] for w in words])

    monkeypatch.setattr(instruct, "encode_shards", encoded)
    draw = instruct.pairs(Options(data=tmp_path), Reader())  # pyright: ignore[reportArgumentType]
    z, said = draw(3, 64)
    assert z.shape == (64, 2, 4, 2, 2) and said.shape == (64, 1, 1) and len(said.unique()) > 30
    assert torch.equal(z[:, 0, 0, 0, 0], said[:, 0, 0]) and torch.equal(z[:, 1, 3, 1, 1], said[:, 0, 0] + 0.5)


def test_what_an_instruction_changes_weighs_more_and_an_image_weighs_one():
    from sfumato.stilllife.train import instruct

    z = torch.randn(3, 1, 4, 4, 4).repeat(1, 2, 1, 1, 1)
    z[0, 1, :, 1, 2] += 1.0  # one cell of sixteen
    z[1, 1] -= 1.0  # all
    z[2, 1, 0, 3, 3] += 0.2  # one, by less than counts
    weight = instruct.changed(z)
    assert weight.shape == (3, 1, 4, 4)
    torch.testing.assert_close(weight.mean((1, 2, 3)), torch.ones(3))
    torch.testing.assert_close(weight[0, 0, 1, 2] / weight[0, 0, 0, 0], torch.tensor(instruct.CHANGED))
    assert (weight[1] == 1).all() and (weight[2] == 1).all()


def test_a_judge_measures_the_error_at_every_level(shards):
    from sfumato.stilllife.oracle import Oracle

    torch.manual_seed(0)
    args = Options(data=shards, clip=shards / "none", vae=shards / "none")
    frozen = unet.load_frozen(args, torch.device("cpu"))
    one = judge.Judge(frozen, Oracle(), data.held_out(args, torch.device("cpu"), 4), n=0)
    found = one.errors(Blind())
    assert set(found) == {"error", *(f"error at {t}" for t in judge.LEVELS)}
    assert found["error"] == pytest.approx(1, abs=0.1)  # the variance of the noise
    assert found == one.errors(Blind())


def test_only_the_decoder_is_trained_and_every_term_reaches_it(shards, tmp_path):
    from diffusers import AutoencoderKL

    from sfumato.stilllife import weights

    args = Options(
        steps=2, batch=2, out=tmp_path / "run", data=shards, vae=tmp_path / "none", report=tmp_path, device="cpu"
    )
    decoder.run(args)
    before, after = (
        weights.module("vae").state_dict(),
        AutoencoderKL.from_pretrained(tmp_path / "run" / "final").state_dict(),
    )
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"decoder", "post_quant_conv"}
    first, last = (loop.read_log(tmp_path / "run")[k] for k in (0, -1))
    assert "told" in last and first["looks"] > 0


def tiny_unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=16, attention_head_dim=2,
    )  # fmt: skip


def test_the_layout_is_read_from_features_and_teaches_them():
    model = tiny_unet()
    layout = unet.Layout(model)
    scenes = [sample_scene(np.random.default_rng(k), count=1) for k in range(2)]
    thing = torch.zeros(2, 64, 64, dtype=torch.uint8)
    thing[:, :32] = 1
    inputs = torch.randn(2, 4, 8, 8), 10, torch.randn(2, 5, 16)
    optimizer = torch.optim.Adam([*model.parameters(), *layout.parameters()], 3e-3)
    losses = []
    for _ in range(60):
        model(*inputs)
        loss = layout.loss(thing, scenes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3 and losses[-1] < 0.1 * losses[0]
    assert model.down_blocks[0].resnets[0].conv1.weight.grad.abs().max() > 0  # pyright: ignore
    model.eval()
    model(*inputs)
    with pytest.raises(AssertionError):  # outside training nothing is kept
        layout.loss(thing, scenes)


def test_attention_for_cpus_is_the_same_function():
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    torch.manual_seed(0)
    layer = Attention(query_dim=16, cross_attention_dim=8, heads=2, dim_head=8)
    for tokens in (16, 300):  # both forms
        x, said = torch.randn(2, tokens, 16), torch.randn(2, 77, 8)
        layer.set_processor(AttnProcessor2_0())
        expected = layer(x, encoder_hidden_states=said)
        layer.set_processor(SmallHeads())
        torch.testing.assert_close(layer(x, encoder_hidden_states=said), expected, atol=1e-5, rtol=1e-5)


def test_the_command_line_prints_one_line_for_what_can_be_put_right(tmp_path, capsys):
    assert __main__.main(["vae", "--data", str(tmp_path), "--device", "cpu", "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no train shards") and error.count("\n") == 1
