"""Concepts: their own file, those of other programs there and back, and what is refused."""

from __future__ import annotations

import os

import pytest
import torch
from families import pipeline, write
from safetensors.torch import load_file, save_file
from torch import nn

from sfumato.errors import SfumatoError
from sfumato.learning import concept_files
from sfumato.learning.concepts import Concept

RNG = torch.Generator().manual_seed(4)
TWO = torch.randn(2, 16, generator=RNG)
OTHER = torch.randn(2, 16, generator=RNG)
DEEP = torch.randn(16, 2, 16, generator=RNG)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "rows",
    [{"clip_l": TWO}, {"clip_l": TWO, "clip_g": OTHER}, {"clip_l": DEEP}, {"clip_l": DEEP[:, None]}],
    ids=["one", "two", "layers", "times"],
)
def test_a_concept_is_read_as_it_was_saved(tmp_path, rows):
    concept = Concept("<own>", rows, {"unet.a.weight": OTHER}, {"kind": "cube", "steps": 3})
    concept.save(tmp_path / "a.safetensors")
    for found in (Concept.load(tmp_path / "a.safetensors"), Concept.read(tmp_path / "a.safetensors")):
        assert found.word == "<own>" and found.about == concept.about
        assert same(found.rows, rows) and same(found.changes, concept.changes)
    assert Concept.read(tmp_path / "a.safetensors").called("the  duck").word == "the duck"


@pytest.mark.parametrize(
    ("format", "rows", "keys", "word"),
    [
        ("diffusers", {"clip_l": TWO}, {"<own>"}, "<own>"),
        ("a1111", {"clip_l": TWO}, {"emb_params"}, "mine"),
        ("sdxl", {"clip_l": TWO, "clip_g": OTHER}, {"clip_l", "clip_g"}, "mine"),
        ("xti", {"clip_l": DEEP}, {*concept_files.LAYERS}, "mine"),
    ],
)
def test_each_format_is_read_back(tmp_path, format, rows, keys, word):
    file = tmp_path / "mine.safetensors"
    Concept("<own>", rows).export(file, format)
    assert load_file(file).keys() == keys
    found = Concept.read(file)
    assert found.word == word and same(found.rows, rows)
    if format == "xti":
        assert torch.equal(load_file(file)["MID"], DEEP[6]) and torch.equal(load_file(file)["OUT03"], DEEP[7])


PICKLES = {
    "a1111": ({"string_to_token": {"*": 265}, "string_to_param": {"*": TWO}, "name": "x", "step": 9}, "mine", None),
    "authors": (
        {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": nn.ParameterDict({"*": nn.Parameter(TWO)})},
        "mine",
        None,
    ),
    "diffusers": ({"<cat-toy>": TWO}, "<cat-toy>", None),
    "sdxl": ({"clip_g": OTHER, "clip_l": TWO}, "mine", OTHER),
    "old sdxl": ({"text_encoders_0": TWO, "text_encoders_1": OTHER}, "mine", OTHER),
    "half": ({"<x>": TWO.half()}, "<x>", None),
    "one": ({"<x>": TWO[0]}, "<x>", None),
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("end", ["pt", "bin"])
def test_pickled_words_are_read_without_unpickling(tmp_path, monkeypatch, name, end):
    value, word, second = PICKLES[name]
    file = tmp_path / f"mine.{end}"
    torch.save(value, file)
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr("pickle.Unpickler", None)
    found = Concept.read(file)
    first = TWO[:1] if name == "one" else TWO.half().float() if name == "half" else TWO
    assert found.word == word and same(found.rows, {"clip_l": first} | ({} if second is None else {"clip_g": second}))


def test_words_beside_a_lora_are_read_by_name(tmp_path):
    file = tmp_path / "style.safetensors"
    lora = {"lora_unet_x.lora_down.weight": torch.zeros(1, 2), "lora_unet_x.lora_up.weight": torch.zeros(2, 1)}
    words = {"bundle_emb.my-cat.emb_params": TWO, "bundle_emb.dog.clip_l": TWO + 1, "bundle_emb.dog.clip_g": OTHER}
    save_file(lora | words, file)
    assert same(Concept.read(file, "my-cat").rows, {"clip_l": TWO})
    assert same(Concept.read(file, "dog").rows, {"clip_l": TWO + 1, "clip_g": OTHER})
    with pytest.raises(SfumatoError, match=r"holds 2 words: \S+, \S+; say which"):
        Concept.read(file)
    with pytest.raises(SfumatoError, match=r"unknown word of .*'cow'; known: "):
        Concept.read(file, "cow")
    save_file(lora, file)
    with pytest.raises(SfumatoError, match="holds no word that was learned; LoRAs are read by --lora"):
        Concept.read(file)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_an_exported_word_is_read_by_diffusers_as_by_us(models, tmp_path, name):
    model = models(name)
    rows = {"clip_l": TWO, "clip_g": OTHER} if name == "sdxl" else {"clip_l": TWO}
    concept = Concept("<own>", rows)
    ours = concept.on(model).embed(["a <own> on grass"])
    theirs = pipeline(write(name, tmp_path))
    for format in ("sdxl",) if name == "sdxl" else ("diffusers", "a1111"):
        file = tmp_path / f"mine-{format}.safetensors"
        concept.export(file, format)
        if name == "sd":
            theirs.load_textual_inversion(str(file), token=format)
            text = theirs.encode_prompt(f"a {format} on grass", "cpu", 1, False)[0]
        else:
            state = load_file(file)
            for key, end in (("clip_l", ""), ("clip_g", "_2")):
                parts = {k: getattr(theirs, k + end) for k in ("text_encoder", "tokenizer")}
                theirs.load_textual_inversion(state[key], token=format, **parts)
            text, _, pooled, _ = theirs.encode_prompt(f"a {format} on grass", device="cpu")
            torch.testing.assert_close(ours.extra["pooled"], pooled, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.text, text, rtol=1e-4, atol=1e-5)
        again = Concept.read(file).called("<own>").on(model)
        assert torch.equal(again.embed(["a <own> on grass"]).text, ours.text)


def test_formats_without_a_place_for_a_word_are_refused(tmp_path):
    file = tmp_path / "a.safetensors"
    for rows, format, says in (
        ({"clip_l": TWO, "clip_g": OTHER}, "diffusers", r"of one encoder, and '<own>' has .*; take sdxl"),
        ({"clip_l": TWO}, "sdxl", "two encoders, and .*; take diffusers"),
        ({"clip_l": TWO}, "xti", "each of Stable Diffusion 1's 16 layers, and .*; take diffusers"),
        ({"clip_l": DEEP}, "a1111", "take xti"),
        ({"clip_l": DEEP[:7]}, "xti", "it fits no format"),
        ({"clip_l": DEEP[:, None]}, "diffusers", "it fits no format"),
        ({"clip_l": TWO}, "onnx", "unknown format 'onnx'; known: diffusers, a1111, sdxl, xti"),
    ):
        with pytest.raises(SfumatoError, match=says):
            Concept("<own>", rows).export(file, format)
    with pytest.raises(SfumatoError, match="holds vectors of a word alone, and '<own>' changes weights"):
        Concept("<own>", {"clip_l": TWO}, {"unet.a.weight": TWO}).export(file, "diffusers")
    assert not file.exists()


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_files_that_hold_no_concept_are_refused_on_one_line(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"<a>": TWO, "<b>": OTHER}, "two.safetensors")
    save_file({"x": TWO, "y": OTHER}, "none.safetensors")
    save_file({"<x>": torch.zeros(2, 3, 4, 5)}, "deep.safetensors")
    save_file({"<x>": torch.full((2, 16), float("nan"))}, "nan.safetensors")
    save_file({"rows.clip_l": TWO}, "lost.safetensors")
    Concept("<own>", {"clip_l": TWO}).save("new.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "new.safetensors").read_bytes()[:-9])
    (tmp_path / "text.safetensors").write_text("no")
    torch.save({"<x>": TWO, "y": Evil()}, "evil.pt")
    for name, says in (
        ("nowhere.safetensors", "there is no concept nowhere.safetensors; sfumato learn"),
        ("two.safetensors", "holds 2 words: <a>, <b>; say which"),
        ("none.safetensors", "holds no word that was learned"),
        ("deep.safetensors", r"is damaged: '<x>' has vectors \[\(2, 3, 4, 5\)\]"),
        ("nan.safetensors", "<x> of nan.safetensors became not finite; the file is damaged"),
        ("lost.safetensors", "holds no word that was learned"),
        ("cut.safetensors", "cannot read cut.safetensors"),
        ("text.safetensors", "cannot read text.safetensors"),
        ("evil.pt", r"evil.pt is not read, as it could run code: it asks for \w+.system"),
    ):
        with pytest.raises(SfumatoError, match=says) as caught:
            Concept.read(name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(SfumatoError, match=r"'<x>' is 24 wide, and .* reads words of 16"):
        Concept("<x>", {"clip_l": torch.zeros(1, 24)}).on(models("sd"))
    with pytest.raises(SfumatoError, match="vectors for 3 layers that read the text, and this model has"):
        known = Concept("<x>", {"clip_l": torch.zeros(3, 1, 16)}).on(models("sd"))
        known.predict(torch.zeros(1, 4, 16, 16), 1.0, known.embed(["<x>"]))
    with pytest.raises(SfumatoError, match="vectors for 3 layers that read the text, and this model has"):
        known = Concept("<x>", {"clip_l": torch.zeros(2, 3, 1, 16)}).on(models("sd"))
        known.predict(torch.zeros(1, 4, 16, 16), 1.0, known.embed(["<x>"]))
    known = Concept("<x>", {"clip_l": TWO}).on(models("sd"))
    with pytest.raises(SfumatoError, match="knows a word '<x>' already; call the other otherwise"):
        Concept("<x>", {"clip_l": TWO}).on(known)
    for word in ("", "!!", "a(b)", "x" * 61):
        with pytest.raises(SfumatoError, match="a concept's word is such as '<duck>'"):
            Concept("<x>", {"clip_l": TWO}).called(word)
    with pytest.raises(SfumatoError, match="holds nothing that was learned"):
        Concept("<x>").save("empty.safetensors")


def test_embeddings_of_a_concepts_file_say_what_it_is(tmp_path):
    from sfumato.backbones.embeddings import read

    Concept("<own>", {"clip_l": TWO}).save(tmp_path / "own.safetensors")
    Concept("<own>", {"clip_l": DEEP}).export(tmp_path / "deep.safetensors", "xti")
    with pytest.raises(SfumatoError, match="it is a concept of sfumato learn; give it to a model as concept"):
        read(tmp_path / "own.safetensors")
    with pytest.raises(SfumatoError, match="has vectors of each layer; give it as a concept"):
        read(tmp_path / "deep.safetensors")


def test_the_published_readings_of_a_word_of_resolutions(models):
    rows = torch.arange(1.0, 5.0).view(4, 1, 1, 1).expand(4, 1, 1, 16).contiguous()
    concept = Concept("<own>", {"clip_l": rows})
    read = {(how, i): concept.resolved(how, i).rows["clip_l"][..., 0] for how in ("fully", "semi") for i in (0, 2)}
    assert read["fully", 0].flatten().tolist() == [1, 2, 3, 4]
    assert read["fully", 2].flatten().tolist() == [3, 3, 3, 4]
    assert read["semi", 0].flatten().tolist() == [0, 2, 3, 4]
    assert read["semi", 2].flatten().tolist() == [0, 0, 0, 4]
    fixed = concept.resolved("fixed", 2)
    assert fixed.rows["clip_l"].shape == (1, 16) and fixed.rows["clip_l"][0, 0] == 3 and not fixed.timed
    assert torch.equal(concept.resolved("fully", 0).rows["clip_l"], rows)
    known = fixed.on(models("sd")).embed(["a <own>"])
    assert known.layered is None and concept.on(models("sd")).embed(["a <own>"]).layered is not None
    with pytest.raises(SfumatoError, match="'<own>' has 4 resolutions, got the number 4"):
        concept.resolved("semi", 4)
    with pytest.raises(SfumatoError, match="'<own>' has 0 resolutions"):
        fixed.resolved("fully", 0)
