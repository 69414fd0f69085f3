"""Break-A-Scene: sets of things, the masked and the attention loss, two phases, and several words in one file."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import learners
import pytest
import torch
import torch.nn.functional as F
from learners import own_models  # noqa: F401

from sfumato.backbones.text import token_of
from sfumato.core.schedule import add_noise
from sfumato.errors import SfumatoError
from sfumato.learning.concepts import Concept
from sfumato.learning.lessons import Lesson
from sfumato.learning.personal import Asked, teach
from sfumato.methods.personalise.break_a_scene import BreakAScene, attention_loss
from sfumato.methods.personalise.lora import LoRA

BOTH = BreakAScene(rate=1e-3, first_rate=1e-2, batch=2, first=0.0)
PLAIN = replace(BOTH, prior_weight=0.0, attention=0.0)


def asked(model, pictures=2, prior=True):
    """A picture with both things, the left half and the lower right corner, and others with the first alone."""
    images = torch.rand(pictures, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(pictures, 2, 64, 64)
    masks[:, 0, :, :32] = 1
    masks[0, 1, 32:, 32:] = 1
    other = Lesson.of(model, images.flip(2), mirrored=False) if prior else None
    return Asked(
        model, Lesson.of(model, images, masks, mirrored=False), "<mug>", "red cube", other, others={"<ball>": "duck"}
    )


def test_the_attention_loss_by_hand():
    seen, mask = torch.tensor([[1.0, 2.0], [4.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert attention_loss(seen, mask).item() == pytest.approx((0.25**2 + 0.5**2 + 0 + 1) / 4)
    assert attention_loss(10 * seen, mask).item() == attention_loss(seen, mask).item()


def test_sets_of_any_size_are_drawn_of_what_a_picture_shows(models):
    problem = BOTH.problem(asked(models("sd")))
    words, sizes = {}, []
    for step in range(60):
        taught = problem.teach(0, step)
        for which, caption, some in zip(
            taught.drawn.which, taught.captions, problem.chosen(step, taught.drawn), strict=True
        ):
            words.setdefault(which, set()).add(caption)
            sizes += [len(some)] if which == 0 else []
            assert caption == "a photo of " + " and ".join(["<mug>", "<ball>"][i] for i in some)
    assert words[0] == {f"a photo of {w}" for w in ("<mug>", "<ball>", "<mug> and <ball>", "<ball> and <mug>")}
    assert words[1] == {"a photo of <mug>"}
    assert sum(size == 2 for size in sizes) / len(sizes) == pytest.approx(0.5, abs=0.15)


def test_what_is_outside_of_the_union_has_no_gradient(models):
    model = models("sd")
    for inside in (False, True):
        problem = replace(PLAIN, inside=inside).problem(asked(model))
        leaf = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
        problem.model = copy(problem.model)
        problem.model.predict = lambda x, t, cond, leaf=leaf: leaf
        for step in range(6):
            taught = problem.teach(0, step)
            union = torch.zeros(2, 8, 8)
            for row, (which, caption) in enumerate(zip(taught.drawn.which, taught.captions, strict=True)):
                if "<mug>" in caption:
                    union[row, :, :4] = 1
                if "<ball>" in caption:
                    assert which == 0
                    union[row, 4:, 4:] = 1
            assert torch.equal(taught.drawn.mask, union)
            loss = problem.loss(step)
            (gradient,) = torch.autograd.grad(loss, leaf)
            assert not gradient[(union == 0)[:, None].expand_as(gradient)].any()
            assert gradient[(union == 1)[:, None].expand_as(gradient)].abs().min() > 0
            square = (leaf - taught.noise).square().detach() * union[:, None]
            cells = union.sum((1, 2)) if inside else torch.tensor([64.0, 64.0])
            assert loss.item() == pytest.approx((square.sum((1, 2, 3)) / (4 * cells)).mean().item(), rel=1e-5)


@pytest.mark.parametrize("prior", [True, False])
def test_the_loss_is_its_three_parts(prior, models):
    """Also without pictures of something else, of which the authors' attention loss depends."""
    how = replace(BOTH, attention=0.5, prior_weight=3.0 if prior else 0.0)
    problem = how.problem(asked(models("sd"), prior=prior))
    found = problem.loss(3)
    taught = [problem.teach(part, 3) for part in range(len(problem.parts))]
    model = problem.model
    total = 0.0
    for each, weight in zip(taught, (1.0, 3.0), strict=False):
        for row, caption in enumerate(each.captions):
            at = each.at.rows(row)
            x = add_noise(each.drawn.x0[row : row + 1], each.noise[row : row + 1], at)
            cond = model.read([caption], problem.words())
            error = (model.predict(x, at.t, cond) - each.noise[row]).square()
            mask = torch.ones(8, 8) if each.drawn.mask is None else each.drawn.mask[row]
            total += weight * (error * mask).mean().item() / 2
            if each.drawn.mask is None:
                assert caption == "a photo at the beach"
                continue
            maps = model.maps(x, at.t, cond, problem.sites, lambda call: call.probs(("main", "cond")).mean(1))
            seen = torch.stack(list(maps.values())).mean(0)[0]
            names = caption.removeprefix("a photo of ").split(" and ")
            tokens = model.pipe.tokenizer(model.text.plain(caption)).input_ids
            for name in names:
                at = tokens.index(model.pipe.tokenizer.convert_tokens_to_ids(token_of(name, 0)))
                side = int(len(seen) ** 0.5)
                full = torch.zeros(64, 64)
                full[(slice(None), slice(0, 32)) if name == "<mug>" else (slice(32, 64), slice(32, 64))] = 1
                mask = F.avg_pool2d(full[None], 64 // side)[0]
                total += 0.5 * attention_loss(seen[:, at].view(side, side), mask).item() / 2
    assert found.item() == pytest.approx(total, rel=1e-4)


def test_vectors_learn_first_and_weights_with_them_later(models):
    model = models("sd")
    before = {name: value.clone() for name, value in model.pipe.text_encoder.state_dict().items()}
    how, given = replace(BOTH, first=0.5, prior_weight=0.0), asked(model)
    assert how.rate_at(7.0, 0, 0.49) == 7.0 and how.rate_at(7.0, 0, 0.5) == how.rate
    begun = how.problem(given).words()
    first = teach(replace(how, first=1.0), given, steps=2)
    assert not first.changes and first.words == ("<mug>", "<ball>")
    kept = {}

    class Seen(BreakAScene):
        def problem(self, asked):
            kept["problem"] = super().problem(asked)
            return kept["problem"]

    def look(run):
        problem = kept["problem"]
        moved = any(p.grad is not None for own in problem.moved.values() for p in own.values())
        assert moved == (run.step > 2), "weights learn in the second half alone"
        assert all(p.grad is not None for own in problem.own.values() for p in own.values())

    whole = teach(Seen(**vars(how)), given, steps=4, on_progress=look)
    parts = {key.partition(".")[0] for key in whole.changes}
    assert parts == {"unet", "text_encoder"} and not [key for key in whole.changes if "token_embedding" in key]
    rows = {whole.word: whole.rows, **whole.others}
    assert all(not torch.equal(rows[word][key], row) for word, of in begun.items() for key, row in of.items())
    assert all(torch.equal(value, before[name]) for name, value in model.pipe.text_encoder.state_dict().items())


def test_a_file_holds_several_words(models, tmp_path):
    model, given = models("sd"), asked(models("sd"))
    concept = teach(replace(BOTH, rank=2, rate=1e-2), given, steps=1)
    found = learners.kept(concept, tmp_path)
    assert found.words == ("<mug>", "<ball>") and found.about["kinds"] == {"<mug>": "red cube", "<ball>": "duck"}
    prompt = "a <ball> and a <mug>"
    painted = learners.painted(found, model, prompt)
    assert torch.equal(painted, learners.painted(concept, model, prompt))
    other = found.called("<cup>", "<dot>")
    assert torch.equal(learners.painted(other, model, "a <dot> and a <cup>"), painted)
    other = found.called("<ball>", "<mug>")
    assert not torch.equal(learners.painted(other, model, prompt), painted)
    for words in (["<cup>"], ["<cup>", "<cup>"]):
        with pytest.raises(SfumatoError, match="the concept holds <mug>, <ball>"):
            found.called(*words)
    with pytest.raises(SfumatoError, match="changes weights"):
        found.export(tmp_path / "other.safetensors", "diffusers")
    with pytest.raises(SfumatoError, match="is one of several"):
        replace(found, changes={}).export(tmp_path / "other.safetensors", "diffusers")
    rows = [{"clip_l": torch.full((1, 4), float(i))} for i in range(3)]
    Concept("<a>", rows[0], others={"<c>": rows[1], "<b>": rows[2]}).save(tmp_path / "three.safetensors")
    three = Concept.read(tmp_path / "three.safetensors")
    assert three.words == ("<a>", "<c>", "<b>")
    assert [float(of["clip_l"][0, 0]) for of in (three.rows, *three.others.values())] == [0, 1, 2]
    damaged = replace(found, others={"<ball>": {}})
    damaged.save(tmp_path / "damaged.safetensors")
    with pytest.raises(SfumatoError, match="nothing is there of its word '<ball>'"):
        Concept.load(tmp_path / "damaged.safetensors")


def test_what_it_cannot_learn_is_said(models):
    model = models("sd")
    given = asked(model)
    with pytest.raises(SfumatoError, match="learns one word, and there are 2: <mug>, <ball>; take break-a-scene"):
        teach(LoRA(), given, steps=1)
    with pytest.raises(SfumatoError, match="there are 1 words"):
        teach(BOTH, replace(given, others={}), steps=1)
    problem = replace(BOTH, vectors=40, prior_weight=0.0).problem(given)
    both = next(step for step in range(40) if "<mug> and <ball>" in " ".join(problem.teach(0, step).captions))
    with pytest.raises(SfumatoError, match="'<ball>' is cut off"):
        problem.loss(both)
    images, masks = torch.rand(1, 3, 64, 64), torch.zeros(1, 2, 64, 64)
    masks[:, 0] = 1
    with pytest.raises(SfumatoError, match="thing 2 is in no mask"):
        Lesson.of(model, images, masks)
