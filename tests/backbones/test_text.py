"""What a family makes of a prompt, against its own pipeline: texts, words, weights, what is cut off, learned words."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, clip_text, ip_adapter, own, sdxl, side, stable_diffusion, write
from rounding import assert_same_but_for_rounding
from safetensors.torch import save_file

from sfumato.backbones.load import family, load
from sfumato.core import taps
from sfumato.core.conditions import Cond
from sfumato.core.denoising import denoise
from sfumato.core.guidance import against, cfg
from sfumato.core.rows import single
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, NegativePrompt, NullText, invert
from sfumato.prompts.weights import plain as unweighed
from sfumato.prompts.words import spans
from sfumato.stilllife import networks

SOURCE, WEIGHED = "a red cube on grass", "a (red:1.7), [cube] on (grass:0)"
LONG = "the " + "red duck and " * 60 + "a cube"
CLOSE: Any = {"atol": 1e-5, "rtol": 1e-5}
ALL = pytest.mark.parametrize("name", [*FAMILIES])


@pytest.fixture(scope="module")
def models():
    return cache(lambda name: load(own(name)))


@pytest.fixture
def fresh():
    """Name -> a model of its own, loaded with options."""
    return lambda name, **options: load(own(name), **options)


@pytest.fixture
def masks(monkeypatch) -> list[Any]:
    """The mask of each attention that runs while weights act."""
    seen: list[Any] = []
    fused = taps.FUSED

    def kernel(q, k, v, mask=None, *args, **kwargs):
        seen.append(mask)
        return fused(q, k, v, mask, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)  # put back with the rest
    monkeypatch.setattr(taps, "FUSED", kernel)
    return seen


def theirs(pipe: Any, prompts: list[str], **options: Any) -> dict[str, torch.Tensor]:
    """What a pipeline's own ``encode_prompt`` says."""
    name = type(pipe).__name__
    once: dict[str, Any] = {"device": "cpu", "do_classifier_free_guidance": False, **options}
    if name == "StableDiffusionPipeline":
        return {"text": pipe.encode_prompt(prompts, num_images_per_prompt=1, **once)[0]}
    if name == "StableDiffusionXLPipeline":
        text, _, pooled, _ = pipe.encode_prompt(prompts, **once)
        return {"text": text, "pooled": pooled}
    if name == "StableDiffusion3Pipeline":
        text, _, pooled, _ = pipe.encode_prompt(prompts, None, None, **once)
        return {"text": text, "pooled": pooled}
    if name == "FluxPipeline":
        text, pooled, _ = pipe.encode_prompt(prompts, None)
        return {"text": text, "pooled": pooled}
    text, *rest = pipe.encode_prompt(prompts, **once)
    return {"text": text, "mask": rest[0]} if "PixArt" in name else {"text": text}


def ours(cond: Cond) -> dict[str, torch.Tensor]:
    return {"text": cond.text, **cond.extra}


@ALL
def test_texts_are_what_the_pipeline_makes_of_them(models, name):
    model = models(name)
    prompts = [SOURCE, "", LONG, "a  Blue duck’s (head), ok"]
    plain = [*prompts[:3], "a  Blue duck’s head, ok"]
    wanted = theirs(model.pipe, plain)
    found = ours(model.embed(prompts))
    assert found.keys() == wanted.keys()
    for part, values in found.items():
        assert_same_but_for_rounding(values, wanted[part])
    assert model.embed(prompts).text.shape[1] == model.text_tokens


def test_an_encoders_attention_mask_is_used(models, fresh):
    model = fresh("sd")
    plain = model.embed([SOURCE]).text
    model.pipe.text_encoder.config.use_attention_mask = True
    other = fresh("sd")
    other.pipe.text_encoder.config.use_attention_mask = True
    torch.testing.assert_close(ours(other.embed([SOURCE])), theirs(model.pipe, [SOURCE]), **CLOSE)
    assert (other.embed([SOURCE]).text - plain).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["deepfloyd", "pixart"])
def test_captions_are_cleaned_as_the_pipeline_cleans_them(models, name, monkeypatch):
    model = models(name)

    def cleaning(text, clean_caption=False):
        texts = [text] if isinstance(text, str) else text
        return [t.lower().replace("photo of", "").strip() if clean_caption else t for t in texts]

    monkeypatch.setattr(model.pipe, "_text_preprocessing", cleaning)
    prompt = "Photo of A red (cube:2) on grass"
    wanted = theirs(model.pipe, ["a red cube on grass"])
    torch.testing.assert_close(ours(model.embed([prompt])), wanted, **CLOSE)
    assert model.words(prompt)[-1] == ("grass", slice(4, 5)) and spans(model.words(prompt), "cube") == [2]
    assert model.embed([prompt]).weights[0, :6].tolist() == [1, 1, 2, 1, 1, 1]


@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_prompt_of_sdxl_is_zeros_where_its_config_says_so(fresh, zeros):
    model = fresh("sdxl")
    model.pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    said, empty = model.embed(["", SOURCE]), model.embed_negative(["", SOURCE])
    assert said.text[0].any() and said.extra["pooled"][0].any(), "as a prompt it is read"
    assert (not empty.text[0].any() and not empty.extra["pooled"][0].any()) == zeros and empty.text[1].any()
    x = model.latents([3], 64, 64)
    options: dict[str, Any] = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "latent"}
    for prompt, negative in ((SOURCE, ""), (SOURCE, "a duck"), ("", "")):
        wanted = model.pipe(prompt, latents=x, guidance_scale=4.0, negative_prompt=negative or None, **options).images
        out = denoise(model, prompt, steps=3, guide=cfg(4.0, negative), start=x)
        torch.testing.assert_close(out.latents, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
@pytest.mark.parametrize("skip", [0, 1])
def test_layers_of_clip_are_skipped_as_diffusers_does(fresh, name, skip):
    plain, model = fresh(name), fresh(name, clip_skip=skip)
    for encoder in (model.pipe.text_encoder, plain.pipe.text_encoder):
        if not hasattr(encoder, "text_model"):
            encoder.__dict__["text_model"] = encoder  # where diffusers looks for the last norm
    wanted = theirs(plain.pipe, [SOURCE], clip_skip=skip)
    torch.testing.assert_close(ours(model.embed([SOURCE])), wanted, **CLOSE)
    assert torch.equal(model.embed([SOURCE]).text, plain.embed([SOURCE]).text) == (skip == 0)
    for negative in ("", "a duck"):  # which is read by all layers
        both = [model.embed_negative([negative]), plain.embed_negative([negative])]
        torch.testing.assert_close(ours(both[0]), ours(both[1]), **CLOSE)
    model.clip_skip = None
    assert torch.equal(model.embed([SOURCE]).text, plain.embed([SOURCE]).text)


@pytest.mark.parametrize("name", ["deepfloyd", "pixart", "flux", "ddpm"])
def test_what_has_no_layers_to_skip_and_learns_no_words_says_so(fresh, name):
    with pytest.raises(SfumatoError, match="no layers of a CLIP that could be skipped"):
        fresh(name, clip_skip=1)
    with pytest.raises(SfumatoError, match="learns no words"):
        fresh(name, embeddings={"thing": torch.zeros(16)})
    with pytest.raises(SfumatoError, match="no layers of a CLIP that could be skipped"):
        fresh("instruct-xl", clip_skip=1)  # whose pipeline has no such option
    with pytest.raises(SfumatoError, match="clip_skip lies between 0 and 1, got 2"):
        fresh("sd", clip_skip=2)


@ALL
def test_probabilities_are_multiplied_by_weights(models, name):
    """P(token) is w exp(logit), normalised: at the first site from plain probabilities, in closed form."""
    model = models(name)
    n = side(model) // model.factor
    x = model.latents([0, 1], side(model), side(model))
    cond = model.embed([WEIGHED, "a duck"])
    assert cond.prompts == (WEIGHED, "a duck")
    found = {word: cond.weights[0, at].tolist() for word, at in model.words(WEIGHED)}
    assert found["a"] == [1] and found["on"] == [1] and found["grass"] == [0]
    assert found["red,"][0] == pytest.approx(1.7) and found["cube"][0] == pytest.approx(1 / 1.1)
    assert found["red,"][1:] == [1], "a mark behind the brackets has the weight of what it stands in"
    assert (cond.weights[1] == 1).all()
    site = next(s for s in model.sites if "text" in s.key)
    seen: list[torch.Tensor] = []

    def look(call):
        seen.append(call.probs(("main", "cond")))
        at = call.segment("k", "text")
        seen.append(torch.tensor([at.start, at.stop]))

    outs = []
    for weights in (None, cond.weights):
        now = replace(cond, weights=weights)
        with model.tap({site: look}, single(2), (n, n)):
            outs.append(model.predict(x, 401.0, now))
        torch.testing.assert_close(model.predict(x, 401.0, now), outs[-1], **CLOSE)
    plain, (start, stop), weighed, _ = seen
    factor = torch.ones(2, plain.shape[-1])
    factor[:, start:stop] = cond.weights
    wanted = plain * factor[:, None, None]
    torch.testing.assert_close(weighed, wanted / wanted.sum(-1, keepdim=True), **CLOSE)
    assert (outs[0][0] - outs[1][0]).abs().max() > 1e-6
    torch.testing.assert_close(outs[0][1], outs[1][1], **CLOSE)  # the row without weights
    if name == "sd3":  # its T5 reads the same words behind CLIP's
        assert cond.weights[0, 77 + 1].item() == pytest.approx(1.7) and (cond.weights != 1).sum() == 6


@ALL
def test_weights_of_one_change_no_bit_and_hook_nothing(models, name, monkeypatch):
    model = models(name)
    x = model.latents([0], side(model), side(model))
    cond = model.embed([SOURCE])
    assert cond.weights is None and model.embed(["a (red:1.0) cube"]).weights is None
    monkeypatch.setattr(taps, "_open_seam", None)
    assert model.predict(x, 401.0, cond).isfinite().all()


@pytest.mark.parametrize("name", ["sd", "deepfloyd", "pixart", "flux"])
def test_every_text_site_is_weighed_and_no_other_attention(models, name, masks):
    model = models(name)
    x = model.latents([0], side(model), side(model))
    model.predict(x, 401.0, model.embed(["a (cube:0)"]))
    assert [m is not None and bool((m == -torch.inf).any()) for m in masks] == ["text" in s.key for s in model.sites]


def test_image_prompts_of_an_ip_adapter_are_not_weighed(fresh, masks):
    model = fresh("sd")
    model.network._load_ip_adapter_weights([ip_adapter(model.network, 0)])
    picture = torch.randn(1, 2, 12, generator=torch.Generator().manual_seed(0))
    shown = model.given(lambda cond: model.with_image_prompt(cond, picture))
    shown.predict(model.latents([0], 64, 64), 401.0, shown.embed(["a (cube:0)"]))
    assert sum(m is not None for m in masks) == sum(s.key == ("text",) for s in model.sites)
    assert len(masks) == len(model.sites) + sum(s.key == ("text",) for s in model.sites)


def test_weights_follow_their_rows(models):
    model = models("sd")
    plain, weighed = model.embed(["a duck"]), model.embed(["a (duck:2)"])
    both: Any = Cond.cat([plain, weighed])
    assert both.weights[:, 2].tolist() == [1, 2] and Cond.cat([plain, plain]).weights is None
    assert both[1:].weights[:, 2].tolist() == [2] and both.repeat(2).weights[:, 2].tolist() == [1, 1, 2, 2]
    with pytest.raises(SfumatoError, match="attends from 1 rows to 5 tokens, and the weights are of 1 rows of 77"):
        short = replace(weighed, text=weighed.text[:, :5])
        model.predict(model.latents([0], 64, 64), 401.0, short)


def test_what_weights_do_not_reach_is_refused(fresh):
    model = fresh("sd")
    x, cond = model.latents([0], 64, 64), model.embed(["a (duck:2)"])

    class Own:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    path = next(s.path for s in model.sites if s.key == ("text",))
    model.network.get_submodule(path).processor = Own()
    with pytest.raises(SfumatoError, match=rf"{path} never reached .*cannot be weighed"):
        model.predict(x, 401.0, cond)
    assert model.embed(["a duck"]).weights is None and taps._local.biased is None
    compiled = fresh("sd", compile=True)
    with pytest.raises(SfumatoError, match="compiled network cannot be weighed"):
        compiled.predict(x, 401.0, cond)


def test_a_negative_prompts_weights_count_and_so_do_those_of_an_inversion(models):
    model = models("sd")
    x = model.latents([3], 64, 64)
    runs = [denoise(model, SOURCE, guide=cfg(4.0, n), steps=2, start=x).latents for n in ("a duck", "a (duck:3)")]
    assert (runs[0] - runs[1]).abs().max() > 1e-5
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    paths = [invert(model, images, prompt, Direct(steps=2)).latents for prompt in ("a duck", "a (duck:3)")]
    assert (paths[0] - paths[1]).abs().max() > 1e-5


@ALL
def test_what_is_cut_off_is_said_once_and_named_words_in_it_are_refused(models, name, capsys):
    model = models(name)
    capsys.readouterr()
    model.embed([SOURCE])
    assert capsys.readouterr().err == ""
    words = LONG if name not in ("flux", "pixart", "sd3") else "the " + "red duck and " * 200 + "a cube"
    for _ in range(2):
        model.embed([words + " ", words + " ", SOURCE])
        model.embed([words + " "])
    (note,) = capsys.readouterr().err.splitlines()
    assert model.text.remark(words + " ") is None, "also where the text is encoded again"
    assert note.startswith("note: the prompt has ") and "the rest is left out" in note and "duck and" in note
    total, most = (int(part.split()[0].strip(";")) for part in (note.split("has ")[1], note.split("first ")[1]))
    assert total == len(words.split()) and most < total
    assert len(model.words(words)) == most and len(model.words(words).cut) == total - most
    with pytest.raises(SfumatoError, match="'cube' lies in what is cut off"):
        spans(model.words(words), "cube")
    size = side(model)
    with pytest.raises(SfumatoError, match="differ only in what is cut off"):
        denoise(model, {"source": words, "target": words.replace("cube", "sphere")}, steps=1, size=size)
    model.check_change(words, words)
    model.check_change(words, words.replace("the red", "the blue"))
    model.check_change(SOURCE, SOURCE.upper())
    if name != "sd3":
        model.check_change(words, words.replace("the red", "the (red:1.2)"))


def test_what_is_pooled_from_the_beginning_alone_is_said_once(models, capsys):
    model, words = models("flux"), "the " + "blue duck and " * 30 + "a cube"
    capsys.readouterr()
    for _ in range(2):
        model.embed([words])
    (note,) = capsys.readouterr().err.splitlines()
    assert "has 93 tokens" in note and "pools the first 75; the rest is left out (but not by tokenizer_2): " in note
    assert not model.words(words).cut and spans(model.words(words), "cube") == [92]
    model.check_change(words, words.replace("a cube", "a sphere"))
    assert model.text.remark(SOURCE) is None


def test_without_t5_nothing_is_said_to_be_read_by_it(fresh):
    model = fresh("sd3", text_encoder_3=None)
    note = model.text.remark("the " + "blue duck and " * 30 + "a cube")
    assert "reads the first 75; the rest is left out: " in note


@pytest.mark.parametrize(
    ("name", "most"),
    [  # every day one number of each, in turn
        pytest.param(name, most, marks=[] if (at + (most == 248)) % 2 else pytest.mark.slow)
        for at, name in enumerate(("sd", "sdxl", "sd3", "flux"))
        for most in (248, int(1e30))
    ],
)
def test_a_tokenizer_gives_a_clip_no_more_than_it_has_positions_for(tmp_path, name, most):
    """Repositories whose tokenizer does not say how much it reads, or says more than the encoder can."""
    folder = write(name, tmp_path)
    wanted = load(own(name)).embed([SOURCE, LONG])
    for config in folder.glob("tokenizer*/tokenizer_config.json"):
        if (folder / config.parent.name / "vocab.json").is_file() or "77" in config.read_text():
            settings = json.loads(config.read_text())
            config.write_text(json.dumps({**settings, "model_max_length": most}))
    model = load(str(folder), device="cpu")
    cond = model.embed([SOURCE, LONG])
    assert torch.equal(cond.text, wanted.text) and all(torch.equal(v, wanted.extra[k]) for k, v in cond.extra.items())


def test_a_longer_clip_is_read_to_its_end():
    pipe = stable_diffusion(text={"max_position_embeddings": 248})
    pipe.tokenizer = deepcopy(pipe.tokenizer)  # which all tests share
    pipe.tokenizer.model_max_length = 248
    model = load(pipe)
    assert model.text_tokens == 248 and not model.words(LONG).cut
    assert model.embed([SOURCE]).text.shape[1] == 248


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_a_token_without_a_vector_is_named(fresh, name):
    model = fresh(name)
    part = {"sdxl": "tokenizer_2"}.get(name, "tokenizer")
    getattr(model.pipe, part).add_tokens(["sks"])
    with pytest.raises(SfumatoError, match=f"'sks' is a token of the {part} .* no vector of it; load .* by embeddings"):
        model.embed(["a sks cube"])
    model.embed(["a cube"])


def test_what_t5_reads_behind_clip_is_no_change_in_vain(models):
    model = models("sd3")
    words = "the " + "red duck and " * 30 + "a cube"
    assert "but not by tokenizer_3" in model.text.remark(words)
    model.check_change(words, words.replace("cube", "sphere"))


VECTORS = torch.arange(4 * 16, dtype=torch.float32).view(4, 16) / 64


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_words_of_several_vectors_are_read_whole_and_words_behind_them_found(fresh, tmp_path, name):
    two = name == "sdxl"
    file = tmp_path / "mycube.safetensors"
    save_file({"clip_l": VECTORS, "clip_g": VECTORS + 1} if two else {"emb_params": VECTORS}, file)
    model, plain = fresh(name, embeddings=[file]), fresh(name)
    prompt = "a (mycube:1.5), on grass"
    for encoder, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))[: 1 + two]:
        given = VECTORS if encoder == "text_encoder" else VECTORS + 1
        parts = {"text_encoder": getattr(plain.pipe, encoder), "tokenizer": getattr(plain.pipe, tokenizer)}
        plain.pipe.load_textual_inversion(given, token="mycube", **parts)
    torch.testing.assert_close(ours(model.embed([prompt])), theirs(plain.pipe, ["a mycube, on grass"]), **CLOSE)
    assert dict(model.words("a mycube on grass")) == {
        "a": slice(1, 2), "mycube": slice(2, 6), "on": slice(6, 7), "grass": slice(7, 8)
    }  # fmt: skip
    assert spans(model.words(prompt), "mycube") == [2, 3, 4, 5, 6] and spans(model.words(prompt), "grass") == [8]
    assert model.embed([prompt]).weights[0, 1:9].tolist() == [1, 1.5, 1.5, 1.5, 1.5, 1, 1, 1]
    many = "mycube " * 19
    assert len(model.words(many)) == 18 and model.words(many).cut == ("mycube",)
    assert torch.equal(fresh(name, embeddings=str(file)).embed([prompt]).text, model.embed([prompt]).text)
    renamed = fresh(name, embeddings={"<it>": file})
    assert dict(renamed.words("a <it> on"))["on"] == slice(6, 7)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize(
    ("prompt", "same"),
    [
        ("a EasyOne on grass", "a FIRST on grass"),  # as files are called
        ("a easyone on grass", "a FIRST on grass"),
        ("EASYONE, on (easyONE:1.2)", "FIRST, on (FIRST:1.2)"),
        ("a easyone2 on easyone", "a SECOND on FIRST"),  # one within another
        ("a easyone on easyone2", "a FIRST on SECOND"),
        ("a cube, cubes on grass", "a THIRD, cubes on grass"),  # a word that there is, and one that begins like it
        ("a Two  words on grass", "a FOURTH on grass"),
    ],
)
def test_learned_words_are_whole_words_however_they_are_written(fresh, name, prompt, same):
    """Each word's vectors in their place, by a model that knows each of them by a name like no other."""
    given: dict[str, Any] = {
        "EasyOne": VECTORS[:2],
        "EasyOne2": VECTORS[1:],
        "cube": VECTORS[2:],
        "two words": VECTORS[:1],
    }
    if name == "sdxl":
        given = {word: {"clip_l": values, "clip_g": values + 1} for word, values in given.items()}
    model, plain = fresh(name, embeddings=given), fresh(name)
    spelled = unweighed(same)
    for mark, word in (("FIRST", "EasyOne"), ("SECOND", "EasyOne2"), ("THIRD", "cube"), ("FOURTH", "two words")):
        values = given[word] if name == "sdxl" else {"clip_l": given[word]}
        for key, end in (("clip_l", ""), ("clip_g", "_2")):
            if key in values:
                tokens = [f"@{mark.lower()}@{i}@" for i in range(len(values[key]))]
                parts = {part: getattr(plain.pipe, part + end) for part in ("text_encoder", "tokenizer")}
                plain.pipe.load_textual_inversion([*values[key]], token=tokens, **parts)
                spelled = spelled.replace(mark, " ".join(tokens))
    torch.testing.assert_close(ours(model.embed([prompt])), theirs(plain.pipe, [spelled]), **CLOSE)
    read = model.words(prompt)
    assert [word for word, _ in read] == unweighed(prompt).split()
    assert read[-1][1].stop == len(plain.pipe.tokenizer.tokenize(spelled)) + 1


def test_a_part_of_a_learned_word_cannot_be_asked_for(fresh):
    words = fresh("sd", embeddings={"my cube": VECTORS[:2]}).words("a my cube on grass")
    assert spans(words, "my cube") == [2, 3]
    with pytest.raises(SfumatoError, match="'cube' has no tokens of its own in this prompt"):
        spans(words, "cube")


def test_what_is_remembered_is_forgotten_when_a_word_is_learned_or_an_encoder_swapped(fresh):
    model = fresh("sd")
    before = model.embed(["a mycube"]).text
    model.pipe.load_textual_inversion(VECTORS, token="mycube")
    learned = model.embed(["a mycube"]).text
    assert (learned - before).abs().max() > 1e-4
    torch.testing.assert_close(learned, theirs(model.pipe, ["a mycube"])["text"], **CLOSE)
    other = deepcopy(networks.tokenizer())  # which all tests share
    other.add_tokens(["one", "two", "three", "four"])  # as many, of other names
    model.pipe.tokenizer = other
    torch.testing.assert_close(model.embed(["a mycube"]).text, before, **CLOSE)
    torch.manual_seed(5)
    model.pipe.text_encoder = clip_text()
    torch.testing.assert_close(model.embed([SOURCE]).text, theirs(model.pipe, [SOURCE])["text"], **CLOSE)
    assert (model.embed(["a mycube"]).text - before).abs().max() > 1e-4


def test_files_of_learned_words_that_do_not_fit_are_refused(fresh, tmp_path):
    save_file({"<thing>": torch.zeros(2, 24)}, tmp_path / "wide.safetensors")
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "two.safetensors")
    (tmp_path / "none.safetensors").write_text("no")
    (tmp_path / "old.pt").write_bytes(b"")
    save_file({"a.lora_A.weight": torch.zeros(2), "a.lora_B.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    both = {"clip_l": torch.zeros(1, 16), "clip_g": torch.zeros(1, 16)}
    for name, embeddings, says in (
        ("sd", [tmp_path / "wide.safetensors"], "'<thing>' is 24 wide, and .* reads words of 16"),
        ("sd", [tmp_path / "two.safetensors"], "is no embedding"),
        ("sd", [tmp_path / "none.safetensors"], r"none.safetensors is no safetensors file, or cut off"),
        ("sd", [tmp_path / "nowhere.safetensors"], r"there is no file .*nowhere.safetensors"),
        ("sd", [tmp_path], "is a folder; a .safetensors file is meant"),
        ("sd", [tmp_path / "lora.safetensors"], "is no embedding, .*: it is a LoRA; give it to a model as lora"),
        ("sd", {"x": torch.zeros(0, 16)}, r"'x' has the shapes \(0, 16\); vectors are"),
        ("sd", {"x": torch.zeros(1, 2, 16)}, r"'x' has the shapes \(1, 2, 16\); vectors are"),
        (
            "sdxl",
            {"x": {**both, "clip_g": torch.zeros(2, 16)}},
            r"'x' has the shapes \(1, 16\), \(2, 16\); vectors are",
        ),
        ("sd", {"x": torch.full((16,), float("nan"))}, "the embedding 'x' became not finite; the file is damaged"),
        ("sd", {"Toy": torch.zeros(16), "toy": torch.zeros(16)}, "has learned 'toy' already; call the other otherwise"),
        ("sd", [tmp_path / "old.pt"], "old.pt is damaged"),
        ("sd", {"x": both}, r"is 16 \(clip_l\) and 16 \(clip_g\) wide, and .* reads words of 16"),
        ("sdxl", {"x": torch.zeros(16)}, r"'x' is 16 wide, and .* reads words of 16 \(clip_l\) and 16 \(clip_g\)"),
        ("sd", {"mycube": torch.zeros(16), "<x>": torch.zeros(16)}, None),
    ):
        if says is None:
            assert fresh(name, embeddings=embeddings).words("a <x>")[1] == ("<x>", slice(2, 3))
            continue
        with pytest.raises(SfumatoError, match=says):
            fresh(name, embeddings=embeddings)


@pytest.mark.parametrize("kind", ["a1111", "diffusers"])
def test_words_of_pickles_are_read_as_those_of_safetensors(fresh, tmp_path, kind):
    file = tmp_path / "it.pt"
    torch.save({"string_to_param": {"*": VECTORS}, "name": "other"} if kind == "a1111" else {"it": VECTORS}, file)
    model, other = fresh("sd", embeddings=[file]), fresh("sd", embeddings={"it": VECTORS})
    assert torch.equal(model.embed(["a it on grass"]).text, other.embed(["a it on grass"]).text)


def test_a_refiner_reads_with_its_second_encoder_alone(fresh):
    from diffusers import StableDiffusionXLPipeline

    pipe = sdxl(network={"cross_attention_dim": 16})
    parts: Any = {**pipe.components, "text_encoder": None, "tokenizer": None}
    alone = StableDiffusionXLPipeline(**parts)
    model = family("refiner", alone)
    torch.testing.assert_close(ours(model.embed([SOURCE])), theirs(alone, [SOURCE]), **CLOSE)
    assert [w for w, _ in model.words(SOURCE)] == SOURCE.split()


def test_a_negative_prompt_has_no_place_where_the_empty_one_is_replaced(models):
    model = models("sd")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for how in (NullText(steps=1, inner=1), NegativePrompt(steps=1)):
        path = invert(model, images, SOURCE, how)
        with pytest.raises(SfumatoError, match="replaces the empty prompt, so there is no place for a negative one"):
            denoise(model, SOURCE, start=path, guide=cfg(7.5, "a duck"))
        with pytest.raises(SfumatoError, match=rf"{type(how).__name__} replaces the empty prompt"):
            how.against("a duck")
        assert how.against("") is how


def test_a_guidance_against_a_negative_prompt_has_a_place_for_it(models):
    from sfumato.core.guidance import CFG, Guide

    model = models("sd")
    assert against(model, 5.0, "x") == CFG(5.0, "x") and against(model, cfg(3.0), "x") == CFG(3.0, "x")
    assert against(model, 1.0, "") == CFG(1.0)
    with pytest.raises(SfumatoError, match="at guidance 1 only the prompt is asked for"):
        against(model, 1.0, "x")
    with pytest.raises(SfumatoError, match="paints without words, so it reads no negative prompt"):
        against(models("ddpm"), 3.0, "x")
    with pytest.raises(SfumatoError, match="Guide has no empty prompt"):
        against(model, Guide(), "x")
    assert against(models("flux"), 3.0, "x") == CFG(3.0, "x")


def test_a_tokenizer_that_does_not_tell_where_its_tokens_lie_is_refused():
    pipe = stable_diffusion()

    class Slow:
        is_fast, model_max_length = False, 77

    model = family("tiny", pipe)
    pipe.tokenizer = Slow()
    with pytest.raises(SfumatoError, match="does not say where in a text its tokens lie"):
        model.words(SOURCE)
