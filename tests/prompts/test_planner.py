"""Layouts from prompts: the grammar's boxes obey what is said, and a chat's answers are read with patience."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

from sfumato.errors import SfumatoError
from sfumato.prompts.planner import CANVAS, Planned, conversation, planned, read_answer, single
from sfumato.stilllife.captions import caption, parse
from sfumato.stilllife.scene import sample_scene


def placed(prompt: str) -> dict[str, tuple[float, float, float, float]]:
    plan = planned(prompt)
    assert len(set(plan.layout.phrases)) == len(plan.layout.phrases)
    return dict(zip(plan.layout.phrases, plan.layout.boxes(), strict=True))


def middle(box) -> float:
    return (box[0] + box[2]) / 2


HOLDS = {
    "left of": lambda a, b: a[2] <= b[0] and a[3] == b[3],
    "right of": lambda a, b: b[2] <= a[0] and a[3] == b[3],
    "on top of": lambda a, b: a[3] == b[1] and middle(a) == middle(b),
    # the foot of what is nearer is lower, by more than things beside each other would differ
    "in front of": lambda a, b: a[3] - b[3] > 0.55 * abs(middle(a) - middle(b)),
    "behind": lambda a, b: b[3] - a[3] > 0.55 * abs(middle(a) - middle(b)),
}


@pytest.mark.parametrize("seed", range(40))
def test_captions_of_scenes_become_boxes_that_obey_them(seed):
    """Unseen captions: a region for each thing, apart from each other, and where the sentence says."""
    rng = np.random.default_rng(seed)
    text = caption(sample_scene(rng, count=2 + seed % 2), rng)
    said = parse(text)
    plan = planned(text)
    boxes = plan.layout.boxes()
    assert len(boxes) == sum(thing.count for thing in said.things)
    assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in boxes)
    for a, b in combinations(boxes, 2):
        assert max(a[0], b[0]) >= min(a[2], b[2]) or max(a[1], b[1]) >= min(a[3], b[3])
    assert {p.split()[-1] for p in plan.layout.phrases} == {t.noun().split()[-1] for t in said.things}
    if said.relation is not None:
        assert HOLDS[said.relation](*boxes[:2]), text
    assert plan.layout.boxes() == planned(text).layout.boxes()
    for phrase in plan.layout.phrases:  # each alone is a caption of one thing on the same ground, in that style
        alone = parse(plan.alone(phrase, text))
        assert len(alone.things) == 1 and alone.things[0].count == 1
        assert (alone.ground, alone.style) == (said.ground, said.style), text


def test_a_plan_of_two_things():
    plan = planned("a red cube to the left of a blue sphere on grass")
    assert plan.layout.phrases == ("red cube", "blue sphere") and plan.background == "{} on grass"
    assert plan.alone("red cube", "a red cube to the left of a blue sphere on grass") == "a red cube on grass"
    (a, b) = plan.layout.boxes()
    assert a == (0.07, 0.34, 0.47, 0.74) and b == (0.53, 0.34, 0.93, 0.74)


@pytest.mark.parametrize(
    ("prompt", "order"),
    [
        ("a dog to the right of a cat", ["cat", "dog"]),
        ("a cat between a dog and a horse in the park", ["dog", "cat", "horse"]),
        ("a red cube on the right and a blue sphere on the left, on snow", ["blue sphere", "red cube"]),
        ("a cat next to a dog, and a bird next to the cat", ["bird", "cat", "dog"]),
        ("a cube and a sphere, the sphere is left of the cube", ["sphere", "cube"]),
        ("a robot and a duck to the right of a tree", ["tree", "robot", "duck"]),
    ],
)
def test_columns_are_in_the_order_that_is_said(prompt, order):
    boxes = placed(prompt)
    found = sorted(boxes, key=lambda phrase: middle(boxes[phrase]))
    assert found == order or found == order[::-1]
    if "between" not in prompt and "next to" not in prompt:
        assert found == order


def test_what_is_on_under_and_above_shares_a_column():
    boxes = placed("a cup and a lamp on a table, and a cat under the table")
    cup, lamp, table, cat = (boxes[n] for n in ("cup", "lamp", "table", "cat"))
    assert cup[3] == lamp[3] == table[1] and table[3] == cat[1]
    assert table[0] <= cup[0] and lamp[2] <= table[2]
    assert placed("a mug under a lamp")["mug"][1] == placed("a mug under a lamp")["lamp"][3]


def test_several_of_a_kind_get_a_box_each():
    prompt = "two red cubes and three ducks on sand"
    plan = planned(prompt)
    assert plan.layout.phrases == ("two red cubes",) * 2 + ("three ducks",) * 3
    assert plan.alone("two red cubes", prompt) == "a red cube on sand"
    assert planned("twelve cars").layout.phrases == ("twelve cars",)
    assert planned("nine cats and nine dogs").layout.phrases == ("nine cats", "nine dogs")
    assert planned("nine cats and nine dogs").alone("nine cats", "nine cats and nine dogs") == "nine cats"


@pytest.mark.parametrize(
    ("phrase", "one"),
    [
        ("two red cubes", "a red cube"), ("three snowmen", "a snowman"), ("two cacti", "a cactus"),
        ("five boxes", "a box"), ("two orange houses", "an orange house"), ("several puppies", "a puppy"),
        ("the cubes", "a cube"), ("red cube", "a red cube"), ("two sheep", "a sheep"), ("two glasses", "a glass"),
    ],
)  # fmt: skip
def test_one_of_several(phrase, one):
    assert single(phrase) == one


def test_backgrounds_keep_style_light_and_ground():
    text = "a watercolour of a large red cube in front of a striped blue duck on the sand at night"
    plan = planned(text)
    assert plan.alone("striped blue duck", text) == "a watercolour of a striped blue duck on the sand at night"
    between = "a red cube on grass and a blue sphere"
    assert planned(between).alone("blue sphere", between) == "a blue sphere on grass"
    aside = "a cat on the left and a dog on the right, on the beach"
    assert planned(aside).alone("cat", aside) == "a cat on the beach"


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        ("grass at night", "names no thing that could be given a box"),
        ("", "names no thing"),
        ("a cube left of a sphere, the cube is right of the sphere", "cube and sphere are contradicts itself"),
        ("a cube on a sphere, the sphere is on the cube", "contradicts itself"),
        ("a cat on the left of a dog, the dog is on the cat", "contradicts itself"),
        (
            ", ".join(f"a {w}" for w in ("cat", "dog", "bird", "horse", "cow", "pig", "duck", "fox")),
            "8 things side by side",
        ),
    ],
)
def test_what_cannot_be_planned_is_said(prompt, match):
    with pytest.raises(SfumatoError, match=match):
        planned(prompt)


PROMPT = "a red cube and two blue ducks on grass"
GOOD = {"things": [{"phrase": "red cube", "box": [51.2, 256, 256, 460.8]}], "background": "a lawn"}
BOX = (0.1, 0.5, 0.5, 0.9)


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(GOOD),
        f"Here you are:\n```json\n{json.dumps(GOOD, indent=2)}\n```\nI hope it helps!",
        str(GOOD),  # Python's quotes
        '{"boxes": [{"name": "a red cube", "bbox": [0.1, 0.5, 0.5, 0.9]}], "background": "a lawn"}',
        '{"objects": {"Red cube": [51.2, 256, 256, 460.8]}, "background prompt": "a lawn"}',
        '{"things": [["red cube", {"x": 51.2, "y": 256, "width": 204.8, "height": 204.8}]], "background": "a lawn"}',
        '{"regions": [{"label": "red cube,", "box": {"x0": 0.1, "y0": 0.5, "x1": 0.5, "y1": 0.9}}], "background": "a lawn"}',  # noqa: E501
        '[], {} no; {"layout": [{"object": "red cube", "bounding_box": [0.1, 0.5, 0.5, 0.9]}], "background": "a lawn"}',
    ],
)  # fmt: skip
def test_answers_are_read_with_patience(answer):
    plan = read_answer(answer, PROMPT)
    assert plan.layout.phrases == ("red cube",) and plan.background == "a lawn"
    assert plan.layout.boxes()[0] == pytest.approx(BOX)
    assert plan.alone("red cube", PROMPT) == "a lawn with a red cube"


def test_a_list_alone_is_a_layout():
    plan = read_answer('[("two blue ducks", [10, 10, 100, 100]), ("two blue ducks", [200, 10, 300, 100])]', PROMPT)
    assert plan.layout.phrases == ("two blue ducks",) * 2 and plan.background == ""
    assert plan.alone("two blue ducks", PROMPT) == "a blue duck"


def things(*boxes: object, phrase: str = "red cube") -> str:
    return json.dumps({"things": [{"phrase": phrase, "box": box} for box in boxes]})


BAD = [
    ("I cannot do that.", "holds no JSON"),
    ("{'things': [", "holds no JSON"),
    ('{"things": []}', "no list of"),
    ('{"answer": 3}', "no list of"),
    (things([1, 2, 3]), "a box. of four numbers"),
    (things(["a", 2, 3, 4]), "a box. of four numbers"),
    (things([True, 2, 3, 4]), "a box. of four numbers"),
    (things([0, 0, 600, 100]), f"not inside the canvas of {CANVAS}"),
    (things([-30, 0, 60, 100]), "not inside the canvas"),
    (things([100, 100, 50, 200]), r"has no area; boxes are \[left, top, right, bottom\]"),
    (things([10, 10, 100, 100], phrase="green cube"), "the caption has no 'green cube'"),
    (things([10, 10, 100, 100], phrase="red cubes"), "the caption has no 'red cubes'"),
    (things([10, 10, 100, 100], phrase=""), "the caption has no ''"),
    ('{"things": [{"phrase": 3, "box": [1, 2, 3, 4]}]}', '"phrase" and a "box"'),
    ("[" * 500, "holds no JSON"),
]


@pytest.mark.parametrize(("answer", "match"), [(a, m.replace("a box. of", 'a "box" of')) for a, m in BAD])
def test_answers_that_do_not_do_say_why(answer, match):
    with pytest.raises(SfumatoError, match=match):
        read_answer(answer, PROMPT)


def test_a_chat_is_told_once_what_was_wrong():
    asked = []

    def chat(messages):
        asked.append(list(messages))
        return things([0, 0, 9, 900]) if len(asked) == 1 else json.dumps(GOOD)

    plan = planned(PROMPT, chat)
    assert isinstance(plan, Planned) and plan.layout.phrases == ("red cube",)
    assert asked[0] == conversation(PROMPT) and asked[0][-1]["content"].endswith(PROMPT)
    assert [m["role"] for m in asked[1][-2:]] == ["assistant", "user"]
    assert "not inside the canvas" in asked[1][-1]["content"]

    with pytest.raises(SfumatoError, match="no layout in two tries: the answer holds no JSON; it said 'no'"):
        planned(PROMPT, lambda messages: "no")


def test_the_examples_that_a_chat_sees_are_good_answers():
    turns = conversation(PROMPT)
    pairs = list(zip(turns[1:-1:2], turns[2:-1:2], strict=True))
    assert len(pairs) >= 2
    for asked, answered in pairs:
        plan = read_answer(answered["content"], asked["content"].removeprefix("Caption: "))
        plan.layout.check(disjoint=True)
