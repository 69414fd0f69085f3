"""From words to a scene: what was said is true of it, and impossible words are refused."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import SfumatoError
from sfumato.stilllife.captions import caption, parse, truth
from sfumato.stilllife.compose import scene_of
from sfumato.stilllife.scene import sample_scene


@pytest.mark.parametrize("seed", range(60))
def test_what_the_grammar_says_can_be_composed_and_is_true(seed):
    rng = np.random.default_rng(seed)
    said = parse(caption(sample_scene(rng), rng))
    scene = scene_of(said, rng)
    assert truth(scene, said) == []
    assert len(scene.things) == sum(t.count for t in said.things)


def test_what_is_left_open_is_drawn():
    said = parse("a cube on sand")
    scenes = [scene_of(said, np.random.default_rng(i)) for i in range(20)]
    assert len({s.things[0].colour for s in scenes}) > 3 and len({s.light for s in scenes}) > 1
    assert {s.ground for s in scenes} == {"sand"}
    assert scenes[0] == scene_of(said, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("a red cube on top of a blue ring", "nothing stands on a ring"),
        ("front view of a robot to the left of a duck, overhead view", "no such scene"),
    ],
)
def test_impossible_words_are_refused(words, says):
    with pytest.raises(SfumatoError, match=says):
        scene_of(parse(words), np.random.default_rng(0))
