"""DreamBooth, LoRA and Custom Diffusion: the loops of diffusers' scripts, what moves, and what stays as it was."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from learners import own_models  # noqa: F401
from peft import LoraConfig

from sfumato.backbones import lora_files
from sfumato.backbones.load import load
from sfumato.core.schedule import Level
from sfumato.errors import SfumatoError
from sfumato.learning import tuning
from sfumato.learning.concepts import Concept
from sfumato.learning.lessons import Lesson
from sfumato.learning.personal import Asked, teach
from sfumato.learning.teaching import masked, min_snr
from sfumato.methods.personalise.custom_diffusion import CustomDiffusion, _inside, shown
from sfumato.methods.personalise.dream_booth import WITHOUT_PRIOR, DreamBooth
from sfumato.methods.personalise.lora import LoRA, imported

WORD, KIND = "<duck>", "cube"
CUSTOM = CustomDiffusion(rate=1e-3, identifier="red", sizes=2)
METHODS: dict[str, Any] = {
    "dream-booth": DreamBooth(rate=1e-3, identifier="red"),
    "dream-booth-text": DreamBooth(rate=1e-3, identifier="red", text=True, text_rate=1e-3),
    "lora": LoRA(rate=1e-2, identifier="red"),
    "lora-text": LoRA(rate=1e-2, identifier="red", text=True, batch=2, prior_weight=0.5),
    "custom": CUSTOM,
}


def pictures(model, n=3, seed=0):
    side = families.side(model)
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def asked(model, prior=True, **more):
    lesson = Lesson.of(model, pictures(model))
    other = Lesson.of(model, pictures(model, 2, 1), mirrored=False) if prior else None
    return Asked(model, lesson, WORD, KIND, other, **more)


def weights(model):
    parts = ("unet", "transformer", "text_encoder", "text_encoder_2", "vae")
    return {
        f"{part}.{name}": value
        for part in parts
        if getattr(model.pipe, part, None) is not None
        for name, value in getattr(model.pipe, part).state_dict().items()
    }


def predicted(model, prompt="a <duck> on grass"):
    x = model.latents([3], families.side(model), families.side(model))
    with torch.no_grad():
        return model.predict(x, 500.0, model.embed([prompt]))


# what moves


SLOW = {("dream-booth", "sdxl"), ("lora", "sdxl"), ("dream-booth", "sd3"), ("lora", "flux")}
"""Others of the method and of the family are held every day."""


@pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param(method, name, marks=pytest.mark.slow if (method, name) in SLOW else [])
        for method in METHODS
        for name in ("sd", "sdxl", "sd3", "flux", "pixart")
    ],
)
def test_what_should_moves_and_the_given_model_stays(method, name, models):
    model, how = models(name), METHODS[method]
    if name in ("sd3", "flux", "pixart") and method not in ("lora", "dream-booth"):
        with pytest.raises(SfumatoError, match=r"learn|teaches text"):
            teach(how, asked(model), steps=1)
        return
    before = {key: value.clone() for key, value in weights(model).items()}
    graded = [p.requires_grad for p in model.network.parameters()]
    said, names = predicted(model, "a red cube"), {path: id(m) for path, m in model.network.named_modules()}
    given = asked(model)
    problem = how.problem(given)
    fixed = {part: set(own) for part, own in problem.moved.items()}
    concept = teach(how, given, steps=2)
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())
    assert [p.requires_grad for p in model.network.parameters()] == graded
    assert {path: id(m) for path, m in model.network.named_modules()} == names
    assert all(p.grad is None for p in model.network.parameters())
    assert torch.equal(predicted(model, "a red cube"), said)
    changed = weights(concept.on(model))
    moved = {key for key, value in changed.items() if not torch.equal(value, before[key])}
    if method.startswith("lora"):
        ends = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        text = ("q_proj", "k_proj", "v_proj", "out_proj")
        wanted = {
            key
            for key in before
            if key.startswith(("unet", "transformer")) and key.endswith(tuple(f".{e}.weight" for e in ends))
        }
        if how.text:
            wanted |= {
                k for k in before if k.startswith("text_encoder") and k.endswith(tuple(f"{e}.weight" for e in text))
            }
    elif method == "custom":
        wanted = {key for key in before if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    else:
        wanted = {f"{part}.{name}" for part, own in fixed.items() for name in own}
        everything = {k for k in before if k.startswith(tuple(f"{part}." for part in fixed))}
        buffers = {k for k in everything if k.endswith(("position_ids", "pos_embed.pos_embed"))}
        assert wanted == everything - buffers
    assert moved <= wanted
    if name == "sd":  # others have layers that nothing of this prediction depends on
        unread = {k for k in wanted if k.endswith("text_projection.weight")}
        assert moved == wanted - unread


@pytest.mark.parametrize(
    ("name", "method"), [("sdxl", "dream-booth-text"), ("sdxl", "lora-text"), ("sd", "custom"), ("flux", "lora")]
)
def test_the_concept_on_the_model_says_what_the_learned_network_said(method, name, models, tmp_path):
    model, how = models(name), METHODS[method]
    given, kept = asked(model), {}
    problem_of = type(how).problem

    class Kept(type(how)):  # type: ignore[misc]
        def problem(self, asked):
            kept["problem"] = problem_of(self, asked)
            return kept["problem"]

    concept = teach(Kept(**vars(how)), given, steps=2)
    problem = kept["problem"]
    prompts = [f"a {WORD} on grass"]
    words = {WORD: rows} if (rows := problem.vectors()) else {}
    x = model.latents([3], families.side(model), families.side(model))
    with torch.no_grad():
        own = problem.model.predict(x, 500.0, problem.model.read(prompts, words))
    concept.save(tmp_path / "it.safetensors")
    again = Concept.load(tmp_path / "it.safetensors").on(model)
    torch.testing.assert_close(predicted(again, *prompts), own, atol=3e-5, rtol=1e-4)
    assert (own - predicted(model, *prompts)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_word_reads_as_the_rare_token_before_its_kind(name, models):
    model = models(name)
    knows, _ = tuning.named(asked(model, prior=False), "sks")
    assert torch.equal(predicted(knows, "a <duck> on snow"), predicted(model, "a sks cube on snow"))


def test_rare_words_are_the_last_of_the_vocabulary_or_spelled():
    model, vocabulary = SimpleNamespace(pipe=SimpleNamespace(tokenizer=SimpleNamespace())), {}
    model.pipe.tokenizer.get_vocab = lambda: vocabulary
    words = [f"<{i}>" for i in range(40)]
    spelled = {tuning.rare(model, word) for word in words}
    assert len(spelled) == 40 and all(re.fullmatch("[^aeiouy]{3}", word) for word in spelled)
    tokens = ["sks</w>", *(f"{letter}</w>" for letter in "abcd"), "cat</w>", "zwx</w>", "xkq", "ktn</w>"]
    vocabulary |= {token: i for i, token in enumerate(tokens)}
    assert {tuning.rare(model, word) for word in words} == {"zwx", "ktn"}
    vocabulary |= {token: len(tokens) - i for i, token in enumerate(tokens)}  # the order is of numbers, not of a table
    assert {tuning.rare(model, word) for word in words} == {"sks"}


def test_a_run_that_fails_leaves_the_model_as_it_was(models):
    model = models("sd")
    before, names = (
        {k: v.clone() for k, v in weights(model).items()},
        {p: id(m) for p, m in model.network.named_modules()},
    )

    def stop(run):
        raise ZeroDivisionError

    for how in METHODS.values():
        with pytest.raises(ZeroDivisionError):
            teach(how, asked(model), steps=3, on_progress=stop)
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())
    assert {path: id(m) for path, m in model.network.named_modules()} == names
    assert not hasattr(model.network, "peft_config")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_cut_off_goes_on_bit_for_bit(method, models, tmp_path):
    model, how = models("sd"), METHODS[method]
    keep = tmp_path / "run.safetensors"

    def stop(run):
        if run.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(how, asked(model), steps=2, keep=keep, on_progress=stop)
    again, whole = teach(how, asked(model), steps=2, keep=keep), teach(how, asked(model), steps=2)
    assert again.changes.keys() == whole.changes.keys()
    assert all(torch.equal(again.changes[key], whole.changes[key]) for key in whole.changes)
    assert all(torch.equal(again.rows[key], whole.rows[key]) for key in whole.rows)
    assert teach(how, asked(model, seed=1), steps=1).changes.keys() == whole.changes.keys()
    with pytest.raises(SfumatoError, match="another run"):
        teach(replace(how, rate=0.5), asked(model), steps=2, keep=keep)


# the loss


def ids(pipe, captions, number=""):
    tokenizer = getattr(pipe, f"tokenizer{number}")
    return tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids


def target_of(scheduler, x0, noise, t):
    v = scheduler.config.prediction_type == "v_prediction"
    return scheduler.get_velocity(x0, noise, t) if v else noise


def by_hand(pipe, scheduler, taught, texts, masks=None):
    """The example scripts' loss of an instance and a class in one batch."""
    x0, noise = (torch.cat([pick(each) for each in taught]) for pick in (lambda e: e.drawn.x0, lambda e: e.noise))
    t = torch.cat([each.at.t for each in taught]).long()
    text = pipe.text_encoder(ids(pipe, texts))[0]
    said = pipe.unet(scheduler.add_noise(x0, noise, t), t, encoder_hidden_states=text).sample
    wanted = target_of(scheduler, x0, noise, t)
    own, other = (F.mse_loss(*pair, reduction="none") for pair in zip(said.chunk(2), wanted.chunk(2), strict=True))
    if masks is not None:
        inside = (own * masks[:, None]).sum((1, 2, 3)) / masks.sum((1, 2))
        return inside.mean() / 4 + other.mean()
    return own.mean() + other.mean()


@pytest.mark.parametrize(
    ("name", "method"), [("sd", "dream-booth"), ("sd", "dream-booth-text"), ("sd2", "lora"), ("sd2", "custom")]
)
def test_three_steps_are_those_of_diffusers_scripts(method, name, models):
    """The same latents, noise and times; written as train_dreambooth, train_dreambooth_lora and
    train_custom_diffusion of diffusers are, but for the custom loss, whose mean is over channels, too."""
    model, how = models(name), METHODS[method]
    if method == "lora":
        how = replace(how, prior_weight=1.0)
    given = asked(model)
    problem = how.problem(given)
    pipe = families.own(name)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    for part in (pipe.unet, pipe.text_encoder):
        part.requires_grad_(False)
    own = row = None
    captions = "a {}"
    if method == "lora":
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
        for path, value in problem.moved["unet"].items():
            pipe.unet.get_submodule(f"{path}.default").weight.data.copy_(value.detach())
        learned = [p for p in pipe.unet.parameters() if p.requires_grad]
    elif method == "custom":
        learned = [p for n, p in pipe.unet.named_parameters() if "attn2.to_k" in n or "attn2.to_v" in n]
        table = pipe.text_encoder.get_input_embeddings().weight
        row = pipe.tokenizer.encode("red", add_special_tokens=False)[0]
        learned.append(table)
        own, captions = table.detach().clone(), "photo of a {}"
    else:
        learned = [*pipe.unet.parameters(), *(pipe.text_encoder.parameters() if how.text else [])]
    for p in learned:
        p.requires_grad_(True)
    adam = torch.optim.AdamW(learned, lr=how.rate, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    losses = []
    for step in range(3):
        taught = [problem.teach(part, step) for part in range(2)]
        said = [c.replace(WORD, f"red {KIND}") for each in taught for c in each.captions]
        assert all(c.endswith((captions.format(f"red {KIND}"), captions.format(KIND))) for c in said)
        loss = by_hand(pipe, scheduler, taught, said, taught[0].drawn.mask)
        loss.backward()
        if own is not None:  # only of the new word
            table.grad[[i for i in range(len(table)) if i != row]] = 0
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        adam.step()
        adam.zero_grad()
        if own is not None:
            with torch.no_grad():
                table[[i for i in range(len(table)) if i != row]] = own[[i for i in range(len(table)) if i != row]]
        losses.append(loss.detach())
    found: list[Any] = []
    concept = teach(how, given, steps=3, on_progress=lambda run: found.append(run.loss))
    torch.testing.assert_close(torch.stack(found), torch.stack(losses), atol=1e-6, rtol=1e-5)
    changed = weights(concept.on(model))
    if method == "lora":
        for path, module in pipe.unet.named_modules():
            if hasattr(module, "lora_A"):
                delta = changed[f"unet.{path}.weight"] - weights(model)[f"unet.{path}.weight"]
                torch.testing.assert_close(delta, module.get_delta_weight("default"), atol=2e-6, rtol=1e-3)
        return
    for part in ("unet", "text_encoder"):
        for key, value in getattr(pipe, part).state_dict().items():
            if (own is None or "embed" not in key) and not key.endswith("k_proj.bias"):  # whose gradient is rounding
                near = torch.isclose(changed[f"{part}.{key}"], value, atol=2e-5, rtol=1e-4)
                assert near.float().mean() > 0.999, key
    if row is not None:
        torch.testing.assert_close(concept.rows["clip_l"][0], table[row].detach(), atol=1e-5, rtol=1e-4)
        assert torch.equal(concept.rows["clip_l"][1:], model.vectors(KIND)["clip_l"])


def test_the_prior_counts_its_weight(models):
    model = models("sd")
    losses = [
        replace(DreamBooth(), prior_weight=weight).problem(asked(model)).loss(0).item() for weight in (0.5, 1.0, 3.0)
    ]
    alone = WITHOUT_PRIOR.problem(asked(model, prior=False)).loss(0).item()
    share = losses[1] - alone
    assert share > 0.1
    assert losses == pytest.approx([alone + weight * share for weight in (0.5, 1.0, 3.0)], rel=1e-5)


def test_the_masked_mean_is_over_cells_and_channels_by_hand():
    error = torch.tensor([[[[1.0, 2.0]], [[3.0, 9.0]]], [[[5.0, 7.0]], [[1.0, 1.0]]]])
    mask = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    assert masked(error, mask).item() == pytest.approx(((1 + 9) / 2 + (25 + 49 + 1 + 1) / 4) / 2)
    assert masked(error, mask, torch.tensor([2.0, 0.0])).item() == pytest.approx((1 + 9) / 2)
    assert masked(error, None, torch.tensor([0.0, 4.0])).item() == pytest.approx(2 * (25 + 49 + 1 + 1) / 4)


def test_min_snr_is_of_the_error_in_the_data():
    """Of every prediction the same: min(SNR, gamma) (d x0 / d prediction)^2, by hand and by diffusers' formula."""
    at = families.SCHEDULES["epsilon"].at([5, 300, 900])
    snr = (at.alpha / at.sigma) ** 2
    base = snr.clamp_max(5.0)
    torch.testing.assert_close(min_snr(families.SCHEDULES["epsilon"], at, 5.0), base / snr)
    torch.testing.assert_close(min_snr(families.SCHEDULES["v_prediction"], at, 5.0), base / (snr + 1))
    torch.testing.assert_close(min_snr(families.SCHEDULES["sample"], at, 5.0), base)
    flow = families.SCHEDULES["flow"].at([100, 500])
    torch.testing.assert_close(
        min_snr(families.SCHEDULES["flow"], flow, 5.0), torch.tensor([5 * 0.01, 0.25], dtype=torch.float64)
    )
    end = Level.of(999.0, 0.0, 1.0)
    assert min_snr(families.SCHEDULES["epsilon"], end, 5.0) == 1
    assert min_snr(families.SCHEDULES["v_prediction"], end, 5.0) == 0


def test_min_snr_weighs_both_parts_by_their_own_levels(models):
    model = models("sd")
    how = replace(DreamBooth(snr_gamma=5.0), batch=2)
    problem = how.problem(asked(model))
    taught = [problem.teach(part, 0) for part in range(2)]
    with torch.no_grad():
        total = 0.0
        for each in taught:
            for i in range(2):
                at = each.at.rows(i)
                x = at.alpha * each.drawn.x0[i] + at.sigma * each.noise[i]
                said = problem.model.predict(x[None].float(), at.t, problem.model.embed([each.captions[i]]))
                total += (said - each.noise[i]).square().mean() * min(1.0, float(5 * (at.sigma / at.alpha) ** 2)) / 2
    assert problem.loss(0).item() == pytest.approx(float(total), rel=1e-4)


def test_alpha_scales_the_change(models):
    model = models("sd")
    how = LoRA(alpha=8.0, rate=1e-2)
    problem = how.problem(asked(model, prior=False))
    layer = next(m for m in problem.model.network.modules() if hasattr(m, "lora_A"))
    assert layer.scaling == {"learned": 2.0}
    ups = {k: torch.ones_like(v) for k, v in problem.moved["unet"].items() if k.endswith("lora_B")}
    for key, value in ups.items():
        problem.moved["unet"][key].data.copy_(value)
    changes = how.concept(asked(model, prior=False), problem).changes
    assert all(torch.equal(changes[f"unet.{key}"], 2 * value) for key, value in ups.items())


@pytest.mark.parametrize(("dtype", "method"), [("bfloat16", "dream-booth"), ("float16", "lora"), ("float16", "custom")])
def test_halves_learn_in_float32(dtype, method, tmp_path):
    model, how = families.made(tmp_path, dtype=dtype)("sd"), METHODS[method]
    seen = []
    problem_of = type(how).problem

    class Seen(type(how)):  # type: ignore[misc]
        def problem(self, asked):
            seen.append(problem_of(self, asked))
            return seen[-1]

    concept = teach(Seen(**vars(how)), asked(model), steps=1)
    assert {p.dtype for p in seen[0].learned().values()} == {torch.float32}
    assert all(value.dtype == torch.float32 and value.any() for value in concept.changes.values())
    assert {p.dtype for p in model.network.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("method", ["dream-booth", "lora"])
def test_checkpointing_asks_for_the_same_gradients(method, models):
    model, found = models("sd"), []
    for on in (False, True):
        problem = replace(METHODS[method], checkpointing=on).problem(asked(model))
        own = list(problem.learned().values())
        found.append([g for g in torch.autograd.grad(problem.loss(0), own, allow_unused=True) if g is not None])
        assert on == any(getattr(m, "gradient_checkpointing", False) for m in problem.model.network.modules())
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-6, rtol=1e-4)
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.network.modules())


# files


FILES = [("sd", "kohya"), ("sdxl", "diffusers"), ("sdxl", "kohya"), ("sd3", "diffusers"), ("flux", "diffusers")]


@pytest.mark.parametrize(("name", "layout"), FILES)
def test_a_lora_is_read_by_diffusers_and_by_us(name, layout, models, tmp_path):
    model = models(name)
    how = LoRA(rate=1e-2, text=name in ("sd", "sdxl"), alpha=2.0)
    concept = teach(how, asked(model), steps=2)
    file = tmp_path / f"{layout}.safetensors"
    lora_files.write(file, concept.changes, model.pipe, layout)
    again = imported(file, model, "<it>")
    assert again.changes.keys() == concept.changes.keys()
    for key, value in concept.changes.items():
        torch.testing.assert_close(again.changes[key], value)
    prompt = "a red cube"
    wanted = predicted(Concept(WORD, {}, concept.changes).on(model), prompt)
    other = load(families.own(name))
    assert (predicted(other, prompt) - wanted).abs().max() > 1e-4
    other.pipe.load_lora_weights(file)
    torch.testing.assert_close(predicted(other, prompt), wanted, atol=2e-5, rtol=1e-4)


def test_what_is_no_lora_is_not_written(models, tmp_path):
    model = models("flux")
    with pytest.raises(SfumatoError, match="low-rank changes alone"):
        lora_files.write(tmp_path / "x.safetensors", {"unet.a.weight": torch.zeros(1, 1)}, None)
    concept = teach(LoRA(), asked(model), steps=1)
    with pytest.raises(SfumatoError, match="take diffusers'"):
        lora_files.write(tmp_path / "x.safetensors", concept.changes, model.pipe, "kohya")


# sizes


def test_sizes_are_the_published_ones():
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    counts = {"far": 0, "": 0, "near": 0}
    for seed in range(400):
        out, mask, prefix = shown(image, torch.Generator().manual_seed(seed), 8)
        grey = (out == 0.5).all(0)
        side = 96 - int(grey.all(0).sum()) if grey.any() else 96
        kind = next(k for k, words in {"far": ("a far away ", "very small "), "": ("",),
                                       "near": ("zoomed in ", "close up ")}.items() if prefix in words)  # fmt: skip
        counts[kind] += 1
        assert out.shape == image.shape and mask.shape == (12, 12) and mask.any()
        if kind == "near":
            assert mask.all() and not grey.any()
        else:
            assert 31 <= side <= 96
            assert side in (57, 58) or (kind == "far") == (side < 0.6 * 96)
            inside = mask.repeat_interleave(8, 0).repeat_interleave(8, 1).bool()
            assert not (grey & inside).any()
    # 0.66 of them smaller, two fifths of those below 0.6
    assert counts["near"] / 400 == pytest.approx(0.34, abs=0.07)
    assert counts["far"] / 400 == pytest.approx(0.66 * 0.4, abs=0.07)
    assert [_inside(*each, 8) for each in ((0, 40), (3, 40), (8, 16), (9, 10))] == [
        slice(1, 4), slice(2, 4), slice(1, 3), slice(1, 2)]  # fmt: skip


def test_words_of_a_size_stand_before_the_caption(models):
    model = models("sd")
    problem: Any = replace(CUSTOM, sizes=30, identifier="ktn").problem(asked(model))
    assert torch.equal(problem.rows["clip_l"], model.vectors("ktn")["clip_l"])
    assert torch.equal(problem.behind["clip_l"], model.vectors(KIND)["clip_l"])
    said = {caption for step in range(30) for caption in problem.teach(0, step).captions}
    assert said == {
        f"{size}photo of a {WORD}" for size in ("", "a far away ", "very small ", "zoomed in ", "close up ")
    }
    assert {caption for step in range(9) for caption in problem.teach(1, step).captions} == {f"photo of a {KIND}"}
    taught = problem.teach(0, 0)
    assert taught.drawn.mask is not None and problem.teach(1, 0).drawn.mask is None


def test_a_model_without_words_learns_pictures(models):
    model = models("ddpm")
    given = Asked(model, Lesson.of(model, torch.rand(2, 3, 16, 16)), WORD)
    how = replace(WITHOUT_PRIOR, rate=1e-3)
    found: list[float] = []
    concept = teach(how, given, steps=2, on_progress=lambda run: found.append(float(run.loss)))
    assert {key.partition(".")[0] for key in concept.changes} == {"unet"} and not concept.rows
    knows, x = concept.on(model), model.latents([0], 16, 16)
    assert (knows.predict(x, 500.0, knows.embed([""])) - model.predict(x, 500.0, model.embed([""]))).abs().max() > 1e-4


# what cannot be learned


def test_what_cannot_be_learned_is_said(models):
    model = models("sd")
    with pytest.raises(SfumatoError, match="pictures of 'cube' at large"):
        teach(DreamBooth(), asked(model, prior=False), steps=1)
    assert teach(replace(WITHOUT_PRIOR, rate=1e-3), asked(model, prior=False), steps=1).changes
    given = asked(model)
    with pytest.raises(SfumatoError, match="latents alone"):
        teach(CustomDiffusion(), replace(given, lesson=Lesson(given.lesson.latents)), steps=1)
    with pytest.raises(SfumatoError, match="text encoders of Stable Diffusion"):
        teach(LoRA(text=True), asked(models("pixart")), steps=1)
    other = load(families.own("sd"))
    other.network.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "style")
    with pytest.raises(SfumatoError, match="carries LoRAs"):
        teach(DreamBooth(), asked(other), steps=1)
    beside = teach(LoRA(rate=1e-2), asked(other), steps=1)
    assert other.network.active_adapters() == ["style"]
    assert (predicted(beside.on(other)) - predicted(other, "a sks cube on grass")).abs().max() > 1e-4
