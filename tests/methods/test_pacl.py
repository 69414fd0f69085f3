"""PACL: its loss worked by hand, its head against torch's own layers."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace

import families
import pytest
import torch

from sfumato.core.settings import Settings
from sfumato.errors import SfumatoError
from sfumato.learning.heads import Examples, Head, train
from sfumato.methods import heads
from sfumato.methods.perceive import pacl
from sfumato.methods.perceive.clip_patches import ClipPatches
from sfumato.methods.perceive.dift import DIFT
from sfumato.methods.perceive.open_vocabulary import compatibility, similarity
from sfumato.methods.perceive.pacl import PACL, PatchEmbedder, contrast, read_texts, texts_of
from sfumato.reading.reader import read


def test_a_text_fits_an_image_by_the_patches_that_fit_it():
    """Two patches, one along the text and twice as long, one across: weights e and 1, a mean along (2 e, 1)."""
    patches, texts = torch.tensor([[[4.0, 0], [0, 2]], [[1, 0], [1, 0]]]), torch.tensor([[3.0, 0], [1, 1]])
    fits = compatibility(patches, texts)
    e = math.e
    even = (2 + 1) / math.hypot(2, 1) / math.sqrt(2)  # of equal weights, with a text between them
    expected = [[2 * e / math.hypot(2 * e, 1), even], [1.0, math.sqrt(0.5)]]
    torch.testing.assert_close(fits, torch.tensor(expected))
    sharp = compatibility(patches, texts, sharpness=3.0)[0, 0]
    assert float(sharp) == pytest.approx(2 * e**3 / math.hypot(2 * e**3, 1))
    half = 0.5**0.5
    expected = [[[1, 0], [half, half]], [[1, 1], [half, half]]]
    torch.testing.assert_close(similarity(patches, texts), torch.tensor(expected))


def test_the_contrast_of_two_pairs_worked_by_hand():
    """Rows: log(1 + e^-4) and log(1 + e^-1); columns: log(1 + e^-3) and log(1 + e^-2)."""
    fits = torch.tensor([[0.5, 0.1], [0.2, 0.3]])  # over the temperature 5, 1; 2, 3
    each = [math.log1p(math.exp(-d)) for d in (4, 1, 3, 2)]
    assert float(contrast(fits, torch.eye(2).bool(), 0.1)) == pytest.approx(sum(each) / 4)


def test_a_text_that_is_true_of_another_image_is_no_negative_of_it():
    """Text 1 is true of image 0 too: that one's row has 2 and 0, that column 1 and 0; all else is as ever."""
    fits = torch.tensor([[2.0, 9, 0], [1, 1, 0], [0, 0, 1]])
    true = torch.tensor([[True, True, False], [False, True, False], [False, False, True]])
    rows = [math.log1p(math.exp(-2)), math.log(2 * math.e + 1) - 1, math.log(math.e + 2) - 1]
    columns = [math.log(math.e**2 + math.e + 1) - 2, math.log(math.e + 1) - 1, math.log(math.e + 2) - 1]
    assert float(contrast(fits, true, 1.0)) == pytest.approx(sum(rows + columns) / 6)
    assert float(contrast(fits[:2, :2], torch.ones(2, 2).bool(), 1.0)) == 0.0


def test_the_texts_of_a_caption_are_itself_and_its_nouns():
    assert texts_of("a small red cube to the left of a duck on grass at night")[1:] == ("cube", "duck", "grass")
    method = PACL(templates=("a {}",), nouns=0.5)
    known = method.known(None, Sum(), {"captions": ("a cube on grass", "duck")})
    words = Sum().texts(None, ["cube grass", "cube", "grass", "duck", "duck", "duck"]).view(2, 3, 16)
    torch.testing.assert_close(known["texts"], words)
    assert method.sentence("duck", True) == "a duck" and method.sentence("duck", False) == "duck"


@pytest.mark.parametrize(("nouns", "seen"), [(0.0, {0}), (1.0, {1, 2}), (0.5, {0, 1, 2})])
def test_texts_are_drawn_of_captions_and_nouns(monkeypatch, nouns, seen):
    """Texts of numbers that say which they are."""
    examples, _ = scenes()
    numbers = torch.arange(3.0)[None, :, None].expand(len(examples), 3, 16)
    examples, drawn, trues = replace(examples, texts=numbers), set(), []

    def fits(patches, texts, sharpness):
        drawn.update(texts.flatten().tolist())
        return torch.zeros(len(texts), len(texts))

    monkeypatch.setattr(pacl, "compatibility", fits)
    monkeypatch.setattr(pacl, "contrast", lambda fits, true, temperature: trues.append(true))
    for step in range(4):
        replace(METHOD, nouns=nouns).loss(lambda x: x, examples, step)
    assert drawn == seen and all(bool(true.diagonal().all()) and not bool(true.all()) for true in trues)


def test_the_head_is_a_linear_layer_beside_two():
    """By hand: x = -1 of mean 1 and deviation 2 is -1; 3 x is -3; beside it 2 GELU(-x) = 2 GELU(1), less 1."""
    head = PatchEmbedder(1, 1)
    head.load_state_dict({
        "before.mean": torch.ones(1), "before.scale": torch.full((1,), 2.0), "words": torch.zeros(0, 1),
        "linear.weight": torch.full((1, 1), 3.0), "linear.bias": torch.zeros(1), "beside.0.weight": -torch.ones(1, 1),
        "beside.0.bias": torch.zeros(1), "beside.2.weight": torch.full((1, 1), 2.0), "beside.2.bias": -torch.ones(1),
    })  # fmt: skip
    gelu = 0.5 * (1 + math.erf(0.5**0.5))
    assert head(torch.tensor([[-1.0]])).item() == pytest.approx(-3 + 2 * gelu - 1)


KINDS = ("cube", "duck", "grass", "sand")
PAIRS = ((0, 2), (0, 3), (1, 2), (1, 3), (0, 0), (1, 1), (2, 2), (3, 3))
METHOD = PACL(batch=16, steps=60, rate=3e-3, sharpness=10.0)


@dataclass(frozen=True)
class Sum(Settings):
    """A text is the sum of its words."""

    def texts(self, model, sentences):
        words = torch.randn(4, 16, generator=torch.Generator().manual_seed(7))
        return torch.stack([sum(words[KINDS.index(w)] for w in s.split() if w in KINDS) for s in sentences])


def scenes(n=24):
    """Images of 4 x 4 cells, the left of one look and the right of another or the same, and a sentence of each."""
    draw = torch.Generator().manual_seed(0)
    looks, what = torch.randn(4, 6, generator=draw), (PAIRS * n)[:n]
    maps = torch.stack([torch.stack([looks[a], looks[a], looks[b], looks[b]]).T[:, None].expand(6, 4, 4)
                        for a, b in what])  # fmt: skip
    maps = maps + 0.1 * torch.randn(maps.shape, generator=draw)
    captions = tuple(f"a {KINDS[a]}" + (f" on {KINDS[b]}" if a != b else "") for a, b in what)
    known = METHOD.known(None, Sum(), {"captions": captions})
    return Examples.given(list(maps[:, None]), **known), what


def same(a, b):
    return all(torch.equal(v, b.network.state_dict()[k]) for k, v in a.network.state_dict().items())


def test_captions_alone_tell_it_which_patches_a_word_is_about(sd):
    examples, what = scenes()
    head = train(METHOD, examples, model=sd, source=Sum())
    found = head.with_words(sd, KINDS)
    assert found.names == KINDS and not len(head.network.words)
    for i, pair in enumerate(what):
        labels = found.of([examples.maps([i])[0]], (4, 4)).labels
        assert (int(labels[1, 0]), int(labels[1, 3])) == pair


def test_some_patches_of_each_image_are_drawn_in_each_step(monkeypatch):
    examples, _ = scenes()
    seen = []
    monkeypatch.setattr(pacl, "compatibility", lambda p, t, s: seen.append(p) or torch.zeros(len(p), len(p)))
    for cells, step in ((5, 0), (5, 1), (99, 1), (0, 1)):
        replace(METHOD, cells=cells, batch=24).loss(lambda x: x, examples, step)
    assert [p.shape[1] for p in seen] == [5, 5, 16, 16] and torch.equal(seen[2], seen[3])
    both = zip(seen[1], seen[3], strict=True)
    places = [[int((whole == one).all(-1).nonzero()[0]) for one in some] for some, whole in both]
    assert len(set(places[0])) == 5 and all(p == places[0] for p in places)


def test_a_run_that_is_cut_off_goes_on_bit_for_bit_and_a_file_is_the_head(sd, tmp_path):
    examples, _ = scenes()
    method = replace(METHOD, standard=True)

    def cut(run):
        if run.step == 2:
            raise KeyboardInterrupt

    whole, half = train(method, examples, steps=4), train(method, examples, steps=2)
    with suppress(KeyboardInterrupt):
        train(method, examples, steps=4, keep=tmp_path / "cut", on_progress=cut)
    assert same(train(method, examples, steps=4, keep=tmp_path / "cut"), whole) and not same(half, whole)
    assert whole.network.before.scale.std() > 0
    named = replace(whole, source=DIFT(), model=sd.name).with_words(sd, ("duck", "sand"))
    named.save(tmp_path / "pacl.safetensors")
    found = heads.load(tmp_path / "pacl.safetensors")
    assert (found.method, found.names, found.sizes) == (method, ("duck", "sand"), {"width": 6, "texts": 16, "words": 2})
    assert found.with_words(sd, ()) is found
    map = examples.maps([3])[0]
    assert torch.equal(found.of([map], (8, 8)).scores, named.of([map], (8, 8)).scores)


def test_a_patch_is_named_by_the_most_alike_of_the_words():
    """Cosines of 1 and 0.6 with the words, over a temperature of 0.2."""
    network = PatchEmbedder(2, 2, 2)
    network.load_state_dict({k: torch.zeros_like(v) for k, v in network.state_dict().items()} | {
        "before.scale": torch.ones(2), "linear.weight": torch.eye(2), "words": torch.tensor([[2.0, 0], [0.3, 0.4]])
    })  # fmt: skip
    head = Head(PACL(temperature=0.2), None, network, {"width": 2, "texts": 2, "words": 2}, ("x", "y"))
    found = head.of([torch.tensor([5.0, 0.0])[:, None, None]], (3, 4))
    assert float(found.scores[0]) == pytest.approx(1 / (1 + math.exp(-0.4 / 0.2)))
    assert found.names == ("x", "y") and found.labels.shape == (3, 4) and not found.labels.any()
    both = head.of([torch.tensor([[[5.0, 0]], [[0, 5.0]]]), torch.tensor([[[0.0, 5]], [[5.0, 0]]])], (1, 2))
    alone = head.of([torch.tensor([[[5.0, 0]], [[0, 5.0]]])], (1, 2))
    torch.testing.assert_close(both.scores, alone.scores)


def test_texts_are_where_the_models_encoder_ends_them_or_the_clips(sd, models):
    sentences = ("a red cube on grass", "duck")
    found = read_texts(sd, DIFT(), sentences)
    text = sd.embed(list(sentences)).text
    torch.testing.assert_close(found, torch.stack([text[0, 6], text[1, 2]]))
    other = read_texts(models("pixart"), DIFT(), sentences)
    torch.testing.assert_close(other[1], models("pixart").embed(["duck"]).text[0, 1].float())
    clip = read_texts(sd, ClipPatches(), sentences)
    assert clip.shape == (2, 128) and not torch.allclose(clip[0], clip[1])


def test_a_word_is_the_mean_of_its_sentences_of_length_one(sd):
    examples, _ = scenes()
    head = train(replace(METHOD, templates=("{}", "a {} on grass")), examples, model=sd, source=Sum(), steps=1)
    texts = Sum().texts(sd, ["duck", "a duck on grass"])[:, None]
    expected = sum(t / t.norm() for t in texts) / 2
    torch.testing.assert_close(head.with_words(sd, ("duck",)).network.words, expected)


def test_what_it_cannot_learn_or_name_is_told(sd):
    examples, _ = scenes()
    with pytest.raises(SfumatoError, match="a template has a place for the word"):
        PACL(templates=("a photo",))
    with pytest.raises(SfumatoError, match="PACL learns from pictures with captions"):
        train(METHOD, Examples.given([torch.zeros(1, 6, 4, 4)] * 2))
    with pytest.raises(SfumatoError, match="all of these have the same"):
        train(METHOD, replace(examples, captions=("duck",) * len(examples)))
    head = train(METHOD, examples, steps=1)
    for refused in (lambda: head.of([torch.zeros(6, 4, 4)], (4, 4)), lambda: head.with_words(sd, ())):
        with pytest.raises(SfumatoError, match="names patches by any words, and there is none"):
            refused()
    with pytest.raises(SfumatoError, match=r"there is no CLIP in nowhere; give a folder"):
        ClipPatches("nowhere").texts(sd, ["duck"])


def test_a_clips_patches_are_what_it_makes_of_each(sd):
    """At twice its side as many again along each; the picture's aspect stays."""
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    with read(sd, image, families.side(sd)) as reader:
        found = ClipPatches(side=96).features(reader)
        assert ClipPatches().features(reader).shape == (192, 8, 11)
    from sfumato.stilllife import weights

    network = weights.module("clip").vision_model
    own = network(pixel_values=2 * image[None] - 1, interpolate_pos_encoding=True).last_hidden_state[0, 1:]
    assert found.shape == (192, 6, 8)
    torch.testing.assert_close(found.flatten(1).T, own)
