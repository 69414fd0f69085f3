"""The labels of captions, and the readers that must tell them."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.stilllife import networks
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.scene import COLOURS, GROUNDS, LIGHTS, MATERIALS, SIZES, STYLES
from sfumato.stilllife.train import Options, clip
from sfumato.stilllife.train.facts import ABSENT, PLACES, UNSAID, Facts, Nouns, facts, nouns

KINDS = len(TRAINED)
PAIR = "a watercolour of a large striped red cube to the left of a blue duck at night"


def test_facts_are_what_the_caption_says():
    row = facts([PAIR])[0].tolist()
    colours = {k: COLOURS[c] for k, c in zip(TRAINED, row, strict=False) if c != ABSENT}
    assert colours == {"cube": "red", "duck": "blue"}
    places = {k: p for k, p in zip(TRAINED, row[KINDS : 2 * KINDS], strict=True) if p != UNSAID}
    assert (places["cube"], places["duck"]) == PLACES["left of"] and len(places) == 2
    assert row[2 * KINDS :] == [UNSAID, LIGHTS.index("night"), STYLES.index("watercolour")]
    assert facts(["a duck on sand"])[0, 2 * KINDS] == GROUNDS.index("sand")


def test_the_same_relation_the_other_way_round_is_the_same_fact():
    for one, other in (("left of", "right of"), ("in front of", "behind")):
        assert torch.equal(facts([f"a cube {one} a duck"]), facts([f"a duck {other} a cube"]))


def test_what_is_left_open_is_not_asked_for():
    cube, duck = TRAINED.index("cube"), TRAINED.index("duck")
    row = facts(["a red cube and a blue cube"])[0]
    assert row[cube] == UNSAID and row[duck] == ABSENT  # which cube?
    assert facts(["a cube"])[0, cube] == UNSAID


def test_a_noun_tells_of_its_own_thing_wherever_it_stands():
    texts = [PAIR, "two red cubes", "a red cube and a blue cube"]
    tokens = networks.tokenizer()(texts, padding=True, return_tensors="pt").input_ids
    labels = nouns(texts, tokens)
    words = [networks.tokenizer().convert_ids_to_tokens(row) for row in tokens.tolist()]
    found = {words[r][c]: labels[r, c].tolist() for r, c in (labels != UNSAID).any(-1).nonzero().tolist()}
    none = len(COLOURS), len(MATERIALS), len(SIZES)
    assert found == {
        "cube</w>": [COLOURS.index("red"), MATERIALS.index("striped"), list(SIZES).index("large")],
        "duck</w>": [COLOURS.index("blue"), *none[1:]],
        "cubes</w>": [COLOURS.index("red"), *none[1:]],
    }


@pytest.mark.parametrize("reader", [Facts, Nouns])
def test_readers_learn_from_embeddings_that_hold_the_facts(reader):
    texts = [f"a {c} {k} and a {d} {m}" for c, d in (("red", "blue"), ("blue", "red")) for k, m in (("cube", "duck"),)]
    tokens = networks.tokenizer()(texts, padding=True, return_tensors="pt").input_ids
    torch.manual_seed(0)
    held = torch.randn(2, 16) if reader is Facts else torch.randn(2, tokens.shape[1], 16)
    told = facts(texts) if reader is Facts else nouns(texts, tokens)
    net = reader(16)
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        net.loss(held, told).backward()
        optimizer.step()
    assert net.loss(held, told) < 0.05
    assert net.loss(held.flip(0), told) > 1  # the colours the wrong way round


def test_the_image_half_wants_a_text_half_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SfumatoError, match="train words"):
        clip.run(Options(device="cpu", threads=1))
