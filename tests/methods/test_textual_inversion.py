"""Textual inversion: what moves and what does not, its published losses and variants, and diffusers' own step."""

from __future__ import annotations

from copy import deepcopy

import diffusers
import pytest
import torch
import torch.nn.functional as F

from sfumato.errors import SfumatoError
from sfumato.learning.concepts import bins
from sfumato.learning.lessons import Lesson
from sfumato.learning.loop import learn
from sfumato.learning.personal import Asked, teach
from sfumato.methods.personalise.templates import OBJECT, STYLE
from sfumato.methods.personalise.textual_inversion import (
    MULTIRESOLUTION,
    PER_IMAGE,
    PIVOTAL,
    PROGRESSIVE,
    TextualInversion,
    order,
)


def asked(model, n=3, **options):
    rng = torch.Generator().manual_seed(7)
    pictures = torch.rand(n, 3, model.size, model.size, generator=rng)
    return Asked(model, Lesson.of(model, pictures), "<own>", "cube", **options)


def started(model, method, n=3):
    return method.problem(asked(model, n))


def test_templates_are_the_published_ones():
    assert len(OBJECT) == len({*OBJECT}) == 27 and len(STYLE) == 19 and len({*STYLE}) == 17
    things = (
        "photo of a",
        "rendering of a",
        "photo of my",
        "photo of one",
        "close-up photo of the",
        "dark photo of the",
    )
    things += ("photo of the weird", "photo of the cool", "photo of a dirty", "rendition of the", "bright photo of the")
    assert {"the photo of a {}", *(f"a {text} {{}}" for text in things)} < {*OBJECT}
    styles = ("a picture", "the painting", "a weird painting", "a rendition", "a bright painting")
    assert {f"{text} in the style of {{}}" for text in styles} < {*STYLE}
    twice = [text for text in STYLE if STYLE.count(text) == 2]
    assert {*twice} == {f"a {how} painting in the style of {{}}" for how in ("cropped", "close-up")} and len(twice) == 4
    assert all(text.count("{}") == 1 for text in (*OBJECT, *STYLE))


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_the_words_rows_alone_move(models, name):
    model = models(name)
    networks = [part for part in model.pipe.components.values() if isinstance(part, torch.nn.Module)]
    before = [deepcopy(network.state_dict()) for network in networks]
    concept = teach(TextualInversion(batch=2, rate=0.1), asked(model), steps=3)
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())
    first = model.vectors("cube")
    assert concept.rows.keys() == first.keys() and len(first) == (2 if name == "sdxl" else 1)
    assert all((rows - first[key]).abs().min() > 1e-3 for key, rows in concept.rows.items())
    known = concept.on(model)
    assert torch.equal(known.embed(["the blue duck"]).text, model.embed(["the blue duck"]).text)


@pytest.mark.parametrize(("name", "vectors"), [("sd", 1), ("sd2", 1), ("sd", 3)])
def test_three_steps_are_those_of_diffusers_example(models, name, vectors):
    """The whole vocabulary is its optimiser's, all rows but the word's are put back after each step."""
    model = models(name)
    method = TextualInversion(batch=2, vectors=vectors, rate=0.05)
    problem = started(model, method)
    optimiser = method.optimiser(problem.groups())
    tokenizer, encoder = deepcopy(model.pipe.tokenizer), deepcopy(model.pipe.text_encoder)
    tokens = ["<own>", *(f"<own>_{i}" for i in range(1, vectors))]
    assert tokenizer.add_tokens(tokens) == vectors
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    weight = encoder.get_input_embeddings().weight
    (cube,) = tokenizer("cube", add_special_tokens=False).input_ids
    with torch.no_grad():
        weight[ids] = weight[cube].clone()
    encoder.requires_grad_(False)
    weight.requires_grad_(True)
    kept = weight.detach().clone()
    theirs = torch.optim.AdamW([weight], lr=0.05, weight_decay=1e-2)
    scheduler = diffusers.DDPMScheduler.from_config(model.pipe.scheduler.config)
    for step in range(3):
        taught = problem.teach(0, step)
        optimiser.zero_grad()
        loss = problem.loss(step)
        loss.backward(inputs=[*problem.rows.values()])
        optimiser.step()
        t = taught.at.t.long()
        noisy = scheduler.add_noise(taught.drawn.x0, taught.noise, t)
        texts = [caption.replace("<own>", " ".join(tokens)) for caption in taught.captions]
        read = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        predicted = model.pipe.unet(noisy, t, encoder(read)[0]).sample
        wanted = taught.noise if name == "sd" else scheduler.get_velocity(taught.drawn.x0, taught.noise, t)
        other = F.mse_loss(predicted, wanted)
        assert float(loss.detach()) == pytest.approx(float(other.detach()), rel=1e-5)
        theirs.zero_grad()
        other.backward(inputs=[weight])
        theirs.step()
        rest = torch.ones(len(weight), dtype=torch.bool)
        rest[ids] = False
        with torch.no_grad():
            weight[rest] = kept[rest]
        torch.testing.assert_close(problem.rows["clip_l"][0], weight[ids], rtol=0, atol=1e-4)
        assert (weight[ids] - kept[ids]).abs().max() > 0.03 * (step + 1)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_step_costs_one_pass_of_each_network_and_none_of_the_autoencoder(models, name):
    model = models(name)
    method = TextualInversion(batch=2, vectors=4, shuffle="all")
    problem = started(model, method)
    calls = []
    parts = [
        part for key in ("text_encoder", "text_encoder_2", "unet", "vae") if (part := getattr(model.pipe, key, None))
    ]
    hooks = [part.register_forward_pre_hook(lambda part, args: calls.append(part)) for part in parts]
    try:
        learn(problem, method.optimiser(problem.groups()), steps=2)
    finally:
        for hook in hooks:
            hook.remove()
    assert [calls.count(part) for part in parts] == [2] * (len(parts) - 1) + [0]


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 1), ({"resolutions": 2}, 2), ({"vectors": 4, "shuffle": "all"}, 0), ({"per_image": 1.0}, 3)],
    ids=["plain", "resolutions", "shuffled", "per-image"],
)
def test_pictures_that_read_the_same_read_it_once(models, options, most):
    """Of six pictures (two of each) under one caption; each row is what its picture would read alone."""
    problem = started(models("sd"), TextualInversion(batch=6, templates=("a {}",), **{"begin": "noise", **options}))
    reader = problem.reader(options.get("vectors", 1))
    read, counts = reader.read, []
    reader.read = lambda prompts, words: counts.append(len(prompts)) or read(prompts, words)
    taught = problem.teach(0, 3)
    together = problem.cond([taught])
    assert together.prompts == taught.captions
    assert counts == [most] if most else counts[0] > 3, "orders are drawn for each"
    for i in range(6):
        alone = taught._replace(
            captions=taught.captions[i : i + 1],
            at=taught.at.rows(i),
            drawn=taught.drawn._replace(which=taught.drawn.which[i : i + 1]),
        )
        if options.get("shuffle") is None:
            torch.testing.assert_close(problem.cond([alone]).text, together[i : i + 1].text, atol=1e-5, rtol=1e-4)
    problem.loss(3).backward(inputs=[*problem.rows.values()])
    assert all(rows.grad.any(-1).all() for rows in problem.rows.values())


def test_the_published_penalty_is_the_squared_length_of_the_mean_difference(models):
    problem = started(models("sd"), TextualInversion(vectors=3, regularise=2.0))
    rng = torch.Generator().manual_seed(0)
    moved = torch.randn(1, 3, 16, generator=rng)
    with torch.no_grad():
        problem.rows["clip_l"].add_(moved)
    drift = moved[0]
    expected = sum(float(a @ b) for a in drift for b in drift) / 9
    assert float(problem.beside([], moved).detach()) == pytest.approx(2 * expected, rel=1e-4)
    assert expected == pytest.approx(float(drift.mean(0).square().sum()), rel=1e-4)
    with torch.no_grad():
        problem.rows["clip_l"].copy_(problem.first["clip_l"] + moved - moved.mean(1, keepdim=True))
    assert abs(float(problem.beside([], moved).detach())) < 1e-5  # differences that cancel cost nothing
    problem.method = TextualInversion(vectors=3, regularise=2.0, penalty="norm")
    lengths = (drift - drift.mean(0)).square().sum(-1)
    assert float(problem.beside([], moved).detach()) == pytest.approx(2 * float(lengths.mean()), rel=1e-4)
    problem.method = TextualInversion(vectors=3)
    assert problem.beside([], moved) == 0.0


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("how", ["off", "all", "trailing", "leading", "between", "dynamic"])
def test_shuffles_keep_the_set_and_the_places_that_they_say(how, n):
    rng = torch.Generator().manual_seed(0)
    drawn = [tuple(order(n, how, rng).tolist()) for _ in range(60)]
    assert all(sorted(each) == list(range(n)) for each in drawn)
    as_if = how if how != "dynamic" else "between" if n >= 4 else "trailing" if n == 3 else "all"
    held = {"off": range(n), "all": (), "trailing": (0,), "leading": (n - 1,), "between": (0, n - 1)}[as_if]
    assert all(each[i] == i for each in drawn for i in held)
    free = [i for i in range(n) if i not in held]
    if len(free) > 1:
        assert all(len({each[i] for each in drawn}) > 1 for i in free)
    else:
        assert len({*drawn}) == 1


def test_each_caption_has_an_order_of_its_own_and_reads_the_rows_in_it(models):
    model = models("sd")
    method = TextualInversion(batch=6, vectors=4, begin="noise", shuffle="trailing")
    problem = started(model, method)
    seen = []
    reader = problem.reader(4)
    reader.read = lambda prompts, words: seen.append(words["<own>"]["clip_l"]) or model.embed(prompts)
    problem.cond([problem.teach(0, 5)])
    (rows,) = seen
    own = problem.rows["clip_l"][0]
    found = [[int((own == row).all(-1).nonzero()) for row in each] for each in rows]
    assert all(sorted(each) == [0, 1, 2, 3] and each[0] == 0 for each in found) and len({*map(tuple, found)}) > 2
    problem.cond([problem.teach(0, 5)])
    assert torch.equal(seen[0], seen[1])


def test_a_vector_more_is_read_after_so_many_steps_and_the_others_stay(models):
    method = TextualInversion(batch=1, vectors=3, progressive=2, decay=0.0, rate=0.1)
    assert [method.count(step) for step in range(8)] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert [PROGRESSIVE.count(step) for step in (0, 1999, 2000, 3999, 4000, 10**6)] == [1, 1, 2, 2, 3, 3]
    assert TextualInversion(vectors=3).count(0) == 3
    model = models("sd")
    for steps, count in ((2, 1), (3, 2), (5, 3)):
        concept = teach(method, asked(model), steps=steps)
        (rows,) = concept.rows.values()
        assert len(rows) == count
        moved = (rows - model.vectors("cube")["clip_l"]).abs().amax(-1)
        assert (moved > 0.05).all()
    problem = started(model, method)
    for step, tokens in ((0, 1), (2, 2), (4, 3)):
        caption = problem.teach(0, step).captions[0]
        assert len(problem.reader(tokens).words(caption)[caption.split().index("<own>")][1:]) == 1
        span = dict(problem.reader(tokens).words(caption))["<own>"]
        assert span.stop - span.start == tokens == method.count(step)


def test_each_part_of_all_times_has_vectors_of_its_own(models):
    t = torch.tensor([0, 99, 100, 499.9, 500, 998, 999])
    assert bins(t, 1000, 10).tolist() == [0, 0, 1, 4, 5, 9, 9]
    assert bins(torch.tensor([1000.0, 0.0]), 1000, 10).tolist() == [9, 0] and bins(t, 1000, 1).tolist() == [0] * 7
    problem = started(models("sd"), TextualInversion(batch=3, resolutions=10))
    taught = problem.teach(0, 0)
    problem.loss(0).backward(inputs=[*problem.rows.values()])
    moved = problem.rows["clip_l"].grad.abs().sum((1, 2)) > 0
    assert moved.nonzero().flatten().tolist() == sorted({int(time) // 100 for time in taught.at.t})
    assert len({int(time) // 100 for time in taught.at.t}) > 1


def test_a_learned_word_is_read_by_its_time(models):
    model = models("sd")
    concept = teach(TextualInversion(batch=4, resolutions=4, rate=0.3), asked(model), steps=4)
    assert concept.rows["clip_l"].shape == (4, 1, 1, 16) and concept.timed
    known = concept.on(model)
    cond = known.embed(["a <own> on grass"])
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for t in (0.0, 249.0, 250.0, 740.0, 999.0):
        alone = model.with_words({"<own>": concept.rows["clip_l"][int(t / 1000 * 4), 0]})
        expected = alone.predict(x, t, alone.embed(["a <own> on grass"]))
        torch.testing.assert_close(known.predict(x, t, cond), expected, rtol=1e-4, atol=1e-5)


def test_rows_are_pulled_to_the_vocabularys_spread_after_each_step(models):
    model = models("sdxl")
    method = TextualInversion(batch=1, vectors=2, begin="noise", pull=0.1, rate=0.0)
    problem = started(model, method)
    for key, rows in problem.rows.items():
        assert float(rows.std().detach()) == pytest.approx(model.spread()[key], rel=0.4)
    with torch.no_grad():
        for rows in problem.rows.values():
            rows.mul_(5.0)
    before = {key: rows.detach().clone() for key, rows in problem.rows.items()}
    problem.after_step(0, None)
    for key, rows in problem.rows.items():
        factor = (model.spread()[key] / float(before[key].std())) ** 0.1
        torch.testing.assert_close(rows.detach(), before[key] * factor)
        assert 0.5 < factor < 0.95
    plain = started(model, TextualInversion(batch=1))
    kept = plain.rows["clip_l"].detach().clone()
    plain.after_step(0, None)
    assert torch.equal(plain.rows["clip_l"], kept)
    assert PIVOTAL.vectors == 2 and PIVOTAL.pull == 0.1 and PIVOTAL.begin == "noise"


def test_a_pictures_word_stands_in_some_captions_and_is_its_own(models):
    model = models("sd")
    problem = started(model, TextualInversion(batch=5, per_image=0.25, vectors=2), 40)  # more than there are letters
    captions = [c for step in range(80) for c in problem.teach(0, step).captions]
    own = [c.endswith(" with <own>#") for c in captions]
    assert 0.2 < sum(own) / len(own) < 0.3  # 400 of a probability of a quarter: 0.22 of deviation 0.02
    assert all(c.removesuffix(" with <own>#").count("<own>") == 1 for c in captions)
    step = next(s for s in range(80) if "#" in "".join(problem.teach(0, s).captions))
    taught = problem.teach(0, step)
    problem.loss(step).backward(inputs=[*problem.rows.values(), *problem.own.values()])
    moved = (problem.own["clip_l"].grad.abs().sum((1, 2)) > 0).nonzero().flatten().tolist()
    named = [n for n, c in zip(taught.drawn.which, taught.captions, strict=True) if "#" in c]
    assert moved == sorted(named) and problem.own["clip_l"].shape == (40, 2, 16)
    assert PER_IMAGE.per_image == 0.25 and MULTIRESOLUTION.resolutions == 10
    concept = teach(TextualInversion(batch=2, per_image=1.0), asked(model), steps=1)
    assert concept.rows["clip_l"].shape == (1, 16)


def test_the_rate_rises_and_stays_as_diffusers_schedule(models):
    from diffusers.optimization import get_scheduler

    method = TextualInversion(warmup=4, rate=0.5)
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = get_scheduler("constant_with_warmup", optimiser, num_warmup_steps=4)
    for step in range(7):
        assert method.rate_at(0.5, step, 0.0) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert TextualInversion().rate_at(0.5, 0, 0.0) == 0.5
    still = teach(TextualInversion(batch=1, warmup=10, rate=0.1), asked(models("sd")), steps=1)
    assert torch.equal(still.rows["clip_l"], models("sd").vectors("cube")["clip_l"])


def test_the_loss_on_the_pictures_falls(models):
    model = models("sd")
    method = TextualInversion(batch=2, rate=0.1, templates=("a {}",))
    problem = started(model, method)

    def mean():
        with torch.no_grad():
            return sum(float(problem.loss(step)) for step in range(1000, 1004)) / 4

    before = mean()
    learn(problem, method.optimiser(problem.groups()), steps=15)
    assert mean() < before - 0.002


def test_settings_that_do_not_fit_are_refused(models):
    for settings, says in (
        ({"vectors": 71}, "between 1 and 70"),
        ({"templates": ("a photo",)}, None),
    ):
        with pytest.raises(SfumatoError, match=says or "a template has a place for the word"):
            started(models("sd"), TextualInversion(**settings))
    with pytest.raises(
        SfumatoError, match="teaches a word, which Stable Diffusion 1, 2, XL and the built-in model learn"
    ):
        teach(TextualInversion(), Asked(models("flux"), asked(models("sd")).lesson, "<own>"))
    known = models("sd").with_words({"<own>": models("sd").vectors("cube")})
    with pytest.raises(SfumatoError, match="knows a word '<own>' already"):
        teach(TextualInversion(), asked(known), steps=1)
