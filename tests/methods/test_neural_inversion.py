"""NeTI: keys read the word and values what goes around the encoder, at each time; what is dropped; exact resumes."""

from __future__ import annotations

from dataclasses import replace

import learners
import pytest
import torch
import torch.nn.functional as F

from sfumato.backbones.own_words import Word
from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.learning.concepts import Concept, PerLayer
from sfumato.learning.mappers import Mapped
from sfumato.methods.personalise.neural_inversion import NeuralInversion, simpler

QUICK = NeuralInversion(batch=3, waves=16, templates=("a {}", "the {} on grass"))


def learned(model, method=QUICK):
    asked = learners.asked(model)
    return method.concept(asked, method.problem(asked))


def test_it_begins_as_published(models):
    model = models("sd")
    asked = learners.asked(model)
    (thing,) = NeuralInversion().problem(asked).all
    assert thing.anchors.weight.shape == (10 * model.text_layers, 2048) and thing.hidden == 128
    spread = thing.waves.std(0)
    assert 0.028 < float(spread[0]) < 0.032 and 1.9 < float(spread[1]) < 2.1
    length = model.vectors("cube")["clip_l"][-1].norm()
    rows, beside = thing(torch.tensor([0.0, 700.0]))
    torch.testing.assert_close(rows["clip_l"].norm(dim=-1), length.expand(2, model.text_layers))
    torch.testing.assert_close(beside["clip_l"].norm(dim=-1), torch.full((2, model.text_layers), 0.2))


def test_a_seed_says_how_it_begins_and_the_global_one_goes_on(models):
    model = models("sd")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b = (QUICK.problem(learners.asked(model, seed=seed)).all[0].state_dict() for seed in (0, 0))
    other = QUICK.problem(learners.asked(model, seed=1)).all[0].state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["inner.0.weight"], other["inner.0.weight"]) and not torch.equal(a["waves"], other["waves"])


@pytest.mark.parametrize("skip", [None, 1])
def test_values_are_the_last_norm_of_what_the_encoder_made_of_the_word_and_what_is_beside(models, skip):
    model = models("sd").with_words({})
    model.clip_skip = skip
    concept = learned(model)
    word, known = Mapped.of(concept.mapper), concept.on(model)
    t, layers = torch.tensor([321.0]), model.text_layers
    rows, beside = word.at(t, layers)
    found = learners.texts(known, "a red <duck> on", 321.0)
    assert (found.keys - found.values).abs().amax((0, 1, 3)).nonzero().flatten().tolist() == [3]
    encoder = known.pipe.text_encoder
    with known.own.read_as(known.pipe, {"<duck>": {key: own[0] for key, own in rows.items()}}):
        ids = known.tokenizer(known.text.plain("a red <duck> on"), padding="max_length", return_tensors="pt").input_ids
        states = encoder(ids.expand(layers, -1), output_hidden_states=True).hidden_states
    state = states[-1 if skip is None else -1 - skip][:, 3]
    moved = state + state.norm(dim=-1, keepdim=True) * beside["clip_l"][0, :, 0]
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    torch.testing.assert_close(found.keys[0, :, 3], norm(state), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.values[0, :, 3], norm(moved), atol=1e-5, rtol=1e-5)


def test_of_xl_the_values_are_the_sum_at_the_length_of_each_encoders_text(models):
    model = models("sdxl")
    concept = learned(model)
    _, beside = Mapped.of(concept.mapper).at(torch.tensor([321.0]), model.text_layers)
    found = learners.texts(concept.on(model), "a <duck>", 321.0)
    keys, values = found.keys[0, :, 2].split(16, -1), found.values[0, :, 2].split(16, -1)
    assert (found.keys - found.values).abs().amax((0, 1, 3)).nonzero().flatten().tolist() == [2]
    for key, k, v in zip(("clip_l", "clip_g"), keys, values, strict=True):
        length = k.norm(dim=-1, keepdim=True)
        wanted = F.normalize(k + length * beside[key][0, :, 0], dim=-1) * length
        torch.testing.assert_close(v, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_keys_are_those_of_a_word_with_the_same_vectors_a_layer(models, family):
    model = models(family)
    concept = learned(model)
    rows, _ = Mapped.of(concept.mapper).at(torch.tensor([40.0]), model.text_layers)
    layers = Concept("<duck>", {key: own[0] for key, own in rows.items()}).on(model)
    found = learners.texts(concept.on(model), "a <duck>", 40.0)
    torch.testing.assert_close(found.keys, learners.texts(layers, "a <duck>", 40.0).keys, atol=1e-5, rtol=1e-5)
    other = learners.texts(concept.on(model), "a <duck>", 900.0).keys
    assert (found.keys - other).abs().amax() > 1e-4


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_painting_reads_what_learning_read(models, family):
    model = models(family)
    method = replace(QUICK, dropout=0.0)
    asked = learners.asked(model)
    problem = method.problem(asked)
    taught = problem.teach(0, 0)
    with torch.no_grad():
        cond = problem.cond([taught])
        read = cond.layered(cond, taught.at.t)
    known = method.concept(asked, problem).on(model).embed(cond.prompts)
    again = known.layered(known, taught.at.t)
    torch.testing.assert_close(read.keys, again.keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read.values, again.values, atol=1e-5, rtol=1e-5)


def test_values_alone_teach_what_is_beside_the_word(models):
    """Gradients of the keys go to the word's half of the last layer, those of the values to both."""
    problem = replace(QUICK, dropout=0.0).problem(learners.asked(models("sd")))
    taught = problem.teach(0, 0)
    weight = problem.mappers["thing"].out["clip_l"].weight
    cond = problem.cond([taught])
    texts = cond.layered(cond, taught.at.t)
    (of_keys,) = torch.autograd.grad(texts.keys.square().sum(), weight, retain_graph=True)
    (of_values,) = torch.autograd.grad((texts.values * torch.randn(texts.values.shape)).sum(), weight)
    assert of_keys[:16].abs().amax() > 0 and of_keys[16:].abs().amax() == 0
    assert of_values[:16].abs().amax() > 0 and of_values[16:].abs().amax() > 0


def test_texts_are_made_once_a_prompt_and_time(models):
    model, rows = models("sd"), []
    known = learned(model).on(model)
    hook = model.pipe.text_encoder.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    prompts = ["a <duck>", "a red <duck>", "a <duck>", "a cube"]
    denoise(known, prompts, steps=3, seed=0, size=model.size, guide=3.0)
    hook.remove()
    many = [n for n in rows if n == model.text_layers]
    assert len(many) == 3 * 2
    assert sum(rows) == 3 * 2 * model.text_layers + 4  # and each text once: three prompts and the empty one


def test_a_random_tail_is_dropped_of_about_half(models):
    problem = NeuralInversion().problem(learners.asked(models("sd")))
    kept = torch.cat([problem.kept(step, 50)[0] for step in range(20)]).flatten()
    assert kept.shape == (1000 * problem.all[0].layers.int(),)
    dropped = kept < 128
    assert 0.45 < float(dropped.float().mean()) < 0.55
    assert kept.min() == 0 and 60 < float(kept[dropped].float().mean()) < 67 and kept[dropped].max() == 127
    assert torch.equal(problem.kept(3, 5)[0], problem.kept(3, 5)[0])
    assert not torch.equal(problem.kept(3, 5)[0], problem.kept(4, 5)[0])
    assert replace(QUICK, dropout=0.0).problem(learners.asked(models("sd"))).kept(0, 2) == [None]


def test_a_step_reads_what_is_left(models):
    problem = replace(QUICK, dropout=1.0).problem(learners.asked(models("sd")))
    taught = problem.teach(0, 5)
    own: Word = Mapped(problem.all, None, problem.kept(5, 3))
    with torch.no_grad():
        cond = problem.cond([taught])
        found = cond.layered(cond, taught.at.t)
        rows, _ = own.at(taught.at.t, problem.model.text_layers)
        layers = PerLayer({key: each[0] for key, each in rows.items()})
        first = problem.model.read(cond.prompts[:1], {"<duck>": layers})
        wanted = first.layered(first, taught.at.t[:1])
    torch.testing.assert_close(found.keys[:1], wanted.keys, atol=1e-5, rtol=1e-5)


def test_of_a_simpler_concept_the_first_hidden_numbers_count(models, tmp_path):
    model = models("sd")
    concept, t = learned(model), torch.tensor([321.0])
    found = Mapped.of(learners.kept(simpler(concept, 20), tmp_path).mapper).at(t, model.text_layers)
    kept = torch.full((1, model.text_layers), 20)
    wanted = Mapped(Mapped.of(concept.mapper).mappers, None, [kept]).at(t, model.text_layers)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a["clip_l"], b["clip_l"])
    whole = Mapped.of(simpler(concept, 128).mapper).at(t, model.text_layers)[0]
    assert torch.equal(whole["clip_l"], Mapped.of(concept.mapper).at(t, model.text_layers)[0]["clip_l"])
    assert not torch.equal(whole["clip_l"], found[0]["clip_l"])
    for kept in (0, 129):
        with pytest.raises(SfumatoError, match=r"lies between 1 and 128"):
            simpler(concept, kept)
    with pytest.raises(SfumatoError, match="has no mapper"):
        simpler(Concept("<duck>", {"clip_l": torch.zeros(1, 16)}), 3)


def test_a_run_goes_on_bit_for_bit(models, tmp_path):
    assert learners.goes_on(QUICK, learners.asked(models("sd"), mirrored=True), tmp_path)
