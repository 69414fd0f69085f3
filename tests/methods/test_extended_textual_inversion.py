"""P+: layers with one vector are textual inversion, each layer has its own, and concepts are mixed by layers."""

from __future__ import annotations

from dataclasses import replace

import families
import learners
import pytest
import torch

from sfumato.core.denoising import denoise
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.learning.concepts import Concept
from sfumato.learning.personal import teach
from sfumato.methods.edit import PromptToPrompt
from sfumato.methods.perceive.dift import DIFT
from sfumato.methods.personalise.extended_textual_inversion import ExtendedTextualInversion, mixed
from sfumato.methods.personalise.neural_inversion import NeuralInversion
from sfumato.methods.personalise.textual_inversion import TextualInversion
from sfumato.methods.personalise.view_inversion import ViewInversion
from sfumato.reading.reader import Noise, read

QUICK = ExtendedTextualInversion(batch=4, vectors=2, templates=("a {}", "the {} on grass"))


def ranged(layers, add=0.0, k=1):
    """Vectors of which each says its layer."""
    rows = torch.arange(float(layers))[:, None, None].expand(layers, k, 16) + add
    return Concept("<duck>", {"clip_l": rows.clone()})


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_with_one_vector_for_all_layers_it_is_textual_inversion(models, family):
    asked = learners.asked(models(family))
    plain = TextualInversion(batch=4, vectors=2, templates=QUICK.templates).problem(asked)
    layers = QUICK.problem(asked)
    first, loss = plain.loss(0), layers.loss(0)
    assert torch.equal(first, loss)
    first.backward(inputs=[*plain.rows.values()])
    loss.backward(inputs=[*layers.rows.values()])
    for key, rows in plain.rows.items():
        assert rows.grad.abs().amax() > 0
        torch.testing.assert_close(layers.rows[key].grad.sum(0), rows.grad[0], rtol=1e-4, atol=1e-9)
        assert (layers.rows[key].grad - layers.rows[key].grad[:1]).abs().amax() > 0


def test_each_layer_reads_its_own_vector_and_no_other(models):
    model = models("sd")
    own = torch.randn(model.text_layers, 1, 16, generator=torch.Generator().manual_seed(0))
    other = own.clone()
    other[2] *= -1
    a, b = (learners.texts(Concept("<duck>", {"clip_l": rows}).on(model), "a <duck>").keys[0] for rows in (own, other))
    changed = (a - b).abs().amax((1, 2)) > 1e-4
    assert changed.tolist() == [i == 2 for i in range(model.text_layers)]


def test_painting_reads_what_learning_read(models, tmp_path):
    model = models("sdxl")
    problem, asked = QUICK.problem(learners.asked(model)), learners.asked(model)
    with torch.no_grad():
        for i, rows in enumerate(problem.rows.values()):
            rows += torch.randn(rows.shape, generator=torch.Generator().manual_seed(i))
        cond = problem.cond([problem.teach(0, 0)])
        learned = cond.layered(cond, torch.zeros(len(cond))).keys
    known = learners.kept(QUICK.concept(asked, problem), tmp_path).on(model)
    again = known.embed(cond.prompts)
    torch.testing.assert_close(again.layered(again, torch.zeros(len(cond))).keys, learned, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.extra["pooled"], cond.extra["pooled"], atol=1e-5, rtol=1e-5)
    for n in range(1, len(learned)):
        assert torch.equal(learned[n], learned[0]) == (cond.prompts[n] == cond.prompts[0])


def test_a_prompt_of_several_pictures_is_encoded_once_for_all_layers(models):
    model = models("sd")
    problem, seen = QUICK.problem(learners.asked(model)), []
    taught = problem.teach(0, 0)
    hook = model.pipe.text_encoder.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    problem.loss(0)
    hook.remove()
    assert 1 <= len(set(taught.captions)) <= 2
    assert seen == [len(set(taught.captions)), model.text_layers * len(set(taught.captions))]


def test_a_mix_takes_the_shape_from_the_layers_between_and_the_style_from_the_others():
    shape, style = ranged(16), ranged(16, 100)
    found = mixed(shape, style).rows["clip_l"][:, 0, 0]
    assert found.tolist() == [i if 5 <= i < 10 else 100 + i for i in range(16)]
    assert mixed(shape, style, 0, 16).rows["clip_l"].equal(shape.rows["clip_l"])
    assert mixed(shape, style, 7, 7).rows["clip_l"].equal(style.rows["clip_l"])
    half = mixed(ranged(8), ranged(8, 100), 4, 10).rows["clip_l"][:, 0, 0]
    assert half.tolist() == [100, 101, 2, 3, 4, 105, 106, 107]
    one = Concept("<paint>", {"clip_l": torch.full((1, 16), -1.0)})
    assert mixed(shape, one).rows["clip_l"][:, 0, 0].tolist() == [i if 5 <= i < 10 else -1 for i in range(16)]
    assert mixed(one, style).word == "<paint>" and mixed(one, style).about["layers"] == [5, 10]


@pytest.mark.parametrize(
    "shape, style, layers",
    [
        (ranged(16), ranged(8), (5, 10)),
        (ranged(16), ranged(16, k=2), (5, 10)),
        (ranged(16), Concept("<b>", {"clip_g": torch.zeros(16, 1, 16)}), (5, 10)),
        (Concept("<a>", {"clip_l": torch.zeros(1, 16)}), Concept("<b>", {"clip_l": torch.zeros(1, 16)}), (5, 10)),
        (ranged(16), ranged(16), (10, 5)),
        (ranged(16), ranged(16), (0, 17)),
    ],
)
def test_what_cannot_be_mixed_is_refused(shape, style, layers):
    with pytest.raises(SfumatoError, match=r"cannot be mixed|from low to high"):
        mixed(shape, style, *layers)


def test_another_number_of_layers_is_refused(models):
    model = models("sd")
    with pytest.raises(SfumatoError, match=f"for 3 layers.*this model has {model.text_layers}"):
        families.painted(ranged(3).on(model), "a <duck>")


VIEWS = torch.tensor([[0.0, 20.0], [90.0, 20.0], [180.0, 40.0]])
METHODS = {
    "xti": QUICK,
    "neti": NeuralInversion(batch=2, waves=16),
    "view": ViewInversion(batch=2),
}


@pytest.fixture(scope="module")
def concepts(models):
    made = {}
    for name, method in METHODS.items():
        for family in ("sd", "sdxl"):
            one = teach(method, learners.asked(models(family), cameras=VIEWS), steps=2)
            made[name, family] = one.seen_from(90, 20) if name == "view" else one
    return made


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("name", METHODS)
def test_a_concept_paints_the_same_from_its_file_and_leaves_the_model_alone(models, concepts, name, family, tmp_path):
    model, concept = learners.afresh(models(family)), concepts[name, family]
    before = families.painted(model)
    found = learners.painted(concept, model)
    assert found.isfinite().all()
    assert torch.equal(learners.painted(learners.kept(concept, tmp_path), model), found)
    assert torch.equal(families.painted(concept.on(model)), before) and torch.equal(families.painted(model), before)


@pytest.mark.parametrize("name", METHODS)
def test_it_works_in_windows_in_edits_and_in_what_reads(models, concepts, name):
    model = models("sd")
    known = concepts[name, "sd"].on(model)
    options = {"steps": 2, "seed": 5, "guide": 3.0, "size": model.size}
    wide = denoise(known, "a <duck> on grass", views=Tiles(8), **{**options, "size": (model.size, 2 * model.size)})
    assert wide.latents.shape[-1] == 2 * wide.latents.shape[-2] and wide.latents.isfinite().all()
    alone = denoise(known, "a <duck> on grass", **options).latents
    assert torch.equal(denoise(known, "a <duck> on grass", views=Tiles(8), **options).latents, alone)
    prompts = {"source": "a red cube on grass", "target": "a <duck> cube on grass"}
    edited = denoise(known, prompts, methods=[PromptToPrompt()], **options)
    assert torch.equal(edited["source"].latents, denoise(known, prompts["source"], **options).latents)
    assert not torch.equal(edited["source"].latents, edited["target"].latents)
    reader = read(known, torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(2)))
    layer = next(layer for layer in known.layers if layer.kind == "residual" and layer.stage == "up")
    told = reader.features([layer], Noise(261), "a <duck>")[layer]
    plain = reader.features([layer], Noise(261), "a cube")[layer]
    assert (told - plain).abs().amax() > 0 and replace(DIFT(), ensemble=1).features(reader).isfinite().all()


def test_two_concepts_of_different_kinds_are_read_in_one_prompt(models, concepts):
    model = models("sd")
    known = concepts["neti", "sd"].called("<other>").on(concepts["xti", "sd"].on(model))
    alone = concepts["xti", "sd"].on(model)
    assert torch.equal(learners.texts(known, "a <duck>").keys, learners.texts(alone, "a <duck>").keys)
    both = learners.texts(known, "a <duck> and a <other>")
    assert both.values is not None and not torch.equal(both.keys, both.values)
    assert families.painted(known, "a <duck> and a <other>").isfinite().all()


def test_a_rate_that_falls_is_zero_in_the_end():
    falls, stays = ExtendedTextualInversion(falling=True), ExtendedTextualInversion()
    assert [falls.rate_at(0.2, step, step / 100) for step in (0, 25, 100)] == pytest.approx([0.2, 0.15, 0.0])
    assert [stays.rate_at(0.2, step, step / 100) for step in (0, 25, 100)] == pytest.approx([0.2] * 3)
