"""Words of one's own: what they are read as, what stays as it was, and gradients that reach them."""

from __future__ import annotations

import threading
from copy import copy, deepcopy
from dataclasses import dataclass, replace

import learners
import pytest
import torch
from families import sdxl, stable_diffusion

from sfumato.backbones import own_words
from sfumato.backbones.load import family
from sfumato.errors import SfumatoError

PROMPT, PLAIN = "a <own> on grass", "a cube on grass"


def network(model, cond, t=500.0):
    x = torch.randn(len(cond), 4, model.cells, model.cells, generator=torch.Generator().manual_seed(3))
    return model.predict(x, t, cond)


def parts(model):
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return {name: part for name in names if (part := getattr(model.pipe, name, None)) is not None}


@dataclass(frozen=True)
class Layers:
    """A word whose vectors are given for each layer, with values beside."""

    rows: dict
    beside: dict | None = None
    timed: bool = False

    @property
    def plain(self):
        return {key: rows.mean(0) for key, rows in self.rows.items()}

    def at(self, t, layers):
        return {key: rows.expand(len(t), *rows.shape) for key, rows in self.rows.items()}, self.beside


@pytest.mark.parametrize("name", ["sd", "sd2", "sdxl"])
def test_a_word_with_the_vectors_of_a_known_word_is_read_as_it(models, name):
    model = learners.afresh(models(name))
    own = model.with_words({"<own>": model.vectors("cube")})
    a, b = own.embed([PROMPT, "<own>"]), model.embed([PLAIN, "cube"])
    assert torch.equal(a.text, b.text) and a.extra.keys() == b.extra.keys()
    assert all(torch.equal(a.extra[key], b.extra[key]) for key in a.extra)
    assert torch.equal(network(own, a), network(model, b))


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_several_vectors_stand_in_their_order(models, name):
    model = learners.afresh(models(name))
    red, cube = model.vectors("red"), model.vectors("cube")
    own = model.with_words({"<own>": {key: torch.cat([red[key], cube[key]]) for key in red}})
    assert torch.equal(own.embed([PROMPT]).text, model.embed(["a red cube on grass"]).text)
    assert dict(own.words(PROMPT))["<own>"] == slice(2, 4)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_vocabularies_tokenizers_and_texts_of_the_model_stay_as_they_were(models, name):
    model = models(name)
    before = {key: deepcopy(p.state_dict()) for key, p in parts(model).items() if isinstance(p, torch.nn.Module)}
    sizes = {key: len(p) for key, p in parts(model).items() if key.startswith("tokenizer")}
    text = model.embed([PROMPT]).text
    own = model.with_words({"<own>": {key: rows + 1 for key, rows in model.vectors("cube").items()}})
    assert (own.embed([PROMPT]).text - text).abs().max() > 1e-4
    assert torch.equal(own.embed(["the sphere"]).text, model.embed(["the sphere"]).text)
    assert torch.equal(model.embed([PROMPT]).text, text) and model.own is None
    for key, part in parts(model).items():
        if key in sizes:
            assert len(part) == sizes[key] == len(parts(own)[key]) - 1
        else:
            assert parts(own)[key] is part and not part._forward_pre_hooks
            assert not part.get_input_embeddings()._forward_hooks
            assert all(torch.equal(value, before[key][n]) for n, value in part.state_dict().items())


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_row_a_prompt_reads_its_own_vectors(models, name):
    model = models(name)
    both = [model.vectors("cube"), model.vectors("duck")]
    own = model.with_words({"<own>": both[0]})
    rows = {key: torch.stack([each[key] for each in both]) for key in both[0]}
    read = own.read([PROMPT, PROMPT], {"<own>": rows})
    torch.testing.assert_close(read.text, model.embed([PLAIN, "a duck on grass"]).text, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_gradients_of_vectors_are_those_of_finite_differences(models, name):
    model = models(name)
    rng = torch.Generator().manual_seed(0)
    first = {key: rows + 0.1 * torch.randn(rows.shape, generator=rng) for key, rows in model.vectors("cube").items()}
    own = model.with_words({"<own>": first})

    def value(rows):
        cond = own.read([PROMPT], {"<own>": rows})
        pooled = sum((v * torch.linspace(-1, 1, v.shape[-1])).sum() for k, v in cond.extra.items() if k == "pooled")
        return network(own, cond).square().sum() + pooled

    learned = {key: rows.clone().requires_grad_() for key, rows in first.items()}
    gradients = dict(zip(learned, torch.autograd.grad(value(learned), [*learned.values()]), strict=True))
    for key, rows in first.items():
        way = torch.randn(rows.shape, generator=rng)
        way = way / way.norm()
        ends = [value({**first, key: rows + sign * 1e-2 * way}) for sign in (1, -1)]
        expected = float((ends[0] - ends[1]).detach() / 2e-2)
        assert float((gradients[key] * way).sum()) == pytest.approx(expected, rel=0.03, abs=2e-3)


@pytest.mark.parametrize("eos", [None, 2])
def test_the_pooled_text_of_sdxl_is_that_of_its_end_and_reaches_its_encoders_word(eos, tmp_path):
    """An ``eos_token_id`` of 2 is that of old configurations, by which the end is the largest token."""
    torch.manual_seed(0)
    pipe = sdxl(text={} if eos is None else {"eos_token_id": eos})
    model = family("sdxl", pipe)
    cube = model.vectors("cube")
    own = model.with_words({"<own>": cube})
    assert torch.equal(own.embed([PROMPT]).extra["pooled"], model.embed([PLAIN]).extra["pooled"])
    learned = {key: rows.clone().requires_grad_() for key, rows in cube.items()}
    pooled = own.read([PROMPT], {"<own>": learned}).extra["pooled"]
    first, second = torch.autograd.grad(
        pooled.square().sum(), [learned["clip_l"], learned["clip_g"]], allow_unused=True
    )
    assert first is None and float(second.abs().max()) > 1e-6


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_texts_by_layer_are_the_plain_text_where_layers_read_the_same(models, name):
    model = models(name)
    rows = model.vectors("cube")
    layers = sum(layer.kind == "text" for layer in model.layers)
    for count in (layers, 1):
        word = Layers({key: each.expand(count, -1, -1) for key, each in rows.items()})
        own = model.with_words({"<own>": word})
        cond = own.embed([PROMPT])
        texts = cond.layered(cond, torch.tensor([500.0]))
        assert texts.values is None and texts.keys.shape[1] == layers
        torch.testing.assert_close(texts.keys, cond.text[:, None].expand_as(texts.keys), rtol=0, atol=2e-6)
        torch.testing.assert_close(network(own, cond), network(model, model.embed([PLAIN])), rtol=1e-4, atol=1e-5)


def test_each_layer_reads_its_own_text_and_values_theirs(models):
    model = models("sd")
    layers = sum(layer.kind == "text" for layer in model.layers)
    rng = torch.Generator().manual_seed(1)
    rows = torch.randn(layers, 1, 16, generator=rng)
    beside = torch.randn(1, layers, 1, 16, generator=rng)
    own = model.with_words({"<own>": Layers({"clip_l": rows}, {"clip_l": beside})})
    cond = own.embed([PROMPT])
    texts = cond.layered(cond, torch.tensor([500.0]))
    states = []
    hook = model.last_norm.register_forward_pre_hook(lambda module, args: states.append(args[0]))
    for i in range(layers):
        alone = model.with_words({"<own>": rows[i]}).embed([PROMPT]).text[0]
        torch.testing.assert_close(texts.keys[0, i], alone, rtol=0, atol=2e-6)
        more, state = alone.clone(), states[i][0, 2]
        with torch.no_grad():
            more[2] = model.last_norm.forward(state + state.norm() * beside[0, i, 0])
        torch.testing.assert_close(texts.values[0, i], more, rtol=0, atol=1e-5)
    hook.remove()


def test_words_that_do_not_change_with_time_or_are_the_same_are_read_once(models, monkeypatch):
    model = models("sd")
    calls = []
    real = own_words.apart
    monkeypatch.setattr(own_words, "apart", lambda *args: calls.append(args) or real(*args))
    rows = {"clip_l": model.vectors("cube")["clip_l"].expand(1, -1, -1)}

    class Halves(Layers):
        def at(self, t, layers):
            return {key: (each + (t > 500)[:, None, None, None]).float() for key, each in self.rows.items()}, None

    for word, passes in ((Layers(rows), 1), (Layers(rows, timed=True), 1), (Halves(rows, timed=True), 2)):
        calls.clear()
        own = model.with_words({"<own>": word})
        cond = own.embed([PROMPT])
        for t in (100.0, 200.0, 700.0, 900.0):
            cond.layered(cond, torch.tensor([t]))
        assert len(calls) == passes


@pytest.mark.parametrize("skip", [None, 1])
def test_a_prediction_asks_once_for_all_texts_and_once_for_a_word_at_a_time(models, monkeypatch, skip):
    """What is remembered costs a look through the encoders' modules, and a mapper's vectors a pass of it."""
    model, asked, times = models("sd").with_words({}), [], []
    model.clip_skip = skip

    class Timed(Layers):
        def at(self, t, layers):
            times.extend(t.tolist())
            return super().at(t, layers)

    own = model.with_words({"<own>": Timed({"clip_l": model.vectors("cube")["clip_l"].expand(1, -1, -1)}, timed=True)})
    prompts = [PROMPT, "a red <own>", PROMPT, "a duck", PROMPT, "a red <own>"]
    cond = own.embed(prompts)
    real = type(own)._embed
    monkeypatch.setattr(
        type(own), "_embed", lambda self, *args, **named: asked.append(args) or real(self, *args, **named)
    )
    rows = []
    hook = own.pipe.text_encoder.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    for t in (700.0, 300.0):
        times.clear(), asked.clear()
        texts = cond.layered(cond, torch.tensor([t, t, t, t, 100.0, t]))
        assert len(asked) == 1 and sorted(times) == sorted([t, t, 100.0])
    hook.remove()
    assert sum(rows) == 2, "a word that is always the same is read again"
    torch.testing.assert_close(texts.keys, cond.text[:, None].expand_as(texts.keys), rtol=0, atol=2e-6)


def test_a_text_that_was_changed_is_refused_where_layers_read_their_own(models):
    model = models("sd")
    own = model.with_words({"<own>": Layers({"clip_l": model.vectors("cube")["clip_l"].expand(1, -1, -1)})})
    cond = own.embed([PROMPT])
    with pytest.raises(SfumatoError, match="'<own>' is read otherwise by each layer, and something has changed"):
        network(own, replace(cond, text=cond.text + 1))
    network(own, own.embed(["a duck"]))


def test_texts_by_layer_follow_changes_of_the_encoder(models):
    model = models("sd")
    word = Layers({"clip_l": model.vectors("cube")["clip_l"].expand(1, -1, -1)})
    own = model.with_words({"<own>": word})
    cond = own.embed([PROMPT])
    before = cond.layered(cond, torch.tensor([1.0])).keys
    name = next(n for n, p in model.pipe.text_encoder.named_parameters() if n.endswith("fc1.weight"))
    weight = dict(model.pipe.text_encoder.named_parameters())[name]
    other = own.with_changes({f"text_encoder.{name}": torch.linspace(-1, 1, weight.numel()).view_as(weight)})
    now = other.embed([PROMPT])
    after = now.layered(now, torch.tensor([1.0])).keys
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, now.text[:, None].expand_as(after), rtol=0, atol=2e-6)
    assert torch.equal(cond.layered(cond, torch.tensor([1.0])).keys, before)


def test_other_threads_read_the_encoder_as_it_is_meanwhile(models):
    model = models("sd")
    own = model.with_words({"<own>": model.vectors("cube")["clip_l"] + 1})
    ids = model.pipe.tokenizer("a duck", return_tensors="pt").input_ids
    expected = model.pipe.text_encoder(ids)[0]
    (token,) = own.own.tokens("tokenizer")
    found = []

    def elsewhere():
        found.append(model.pipe.text_encoder(ids)[0])
        with pytest.raises(IndexError):  # there is no such token there
            model.pipe.text_encoder(torch.full_like(ids, token))
        found.append("refused")

    with own.own.read_as(own.pipe):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert model.pipe.text_encoder(torch.full_like(ids, token))[0].isfinite().all()
    assert torch.equal(found[0], expected) and found[1:] == ["refused"]


def test_words_that_do_not_fit_are_refused(models):
    model = models("sd")
    rows = model.vectors("cube")
    own = model.with_words({"<own>": rows})
    for words, says in (
        ({"<own>": rows}, "knows a word '<own>' already; call the other otherwise"),
        ({"<OWN>": rows}, "already"),
        ({"<x>": torch.zeros(1, 24)}, "'<x>' is 24 wide, and .* reads words of 16"),
        ({"<x>": {"clip_l": torch.zeros(1, 16), "clip_g": torch.zeros(1, 16)}}, "clip_g"),
        ({"<x>": torch.zeros(1, 2, 16)}, r"has the shapes \(1, 2, 16\)"),
    ):
        with pytest.raises(SfumatoError, match=says):
            own.with_words(words)
    with pytest.raises(SfumatoError, match="reads nothing in ''; begin with a word"):
        model.vectors("")
    with pytest.raises(SfumatoError, match="learns no words; take Stable Diffusion"):
        models("flux").with_words({"<x>": rows})


def test_the_spread_is_that_of_all_embeddings():
    torch.manual_seed(0)
    model = family("sd", stable_diffusion())
    weight = model.pipe.text_encoder.get_input_embeddings().weight
    assert model.spread() == {"clip_l": pytest.approx(float(weight.std()))}


def test_a_copy_asks_its_own_network_where_a_method_was_assigned(models):
    model = copy(models("sd"))
    model.predict = model.predict
    name, weight = next(iter(model.network.named_parameters()))
    other = model.with_changes({f"unet.{name}": torch.ones_like(weight)})
    cond = model.embed(["a red cube"])
    assert not torch.equal(network(other, cond), network(model, cond))
    known = model.with_words({"<own>": model.vectors("cube")})
    assert known.predict.__self__ is known
