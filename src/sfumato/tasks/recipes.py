"""What suits a model: each method's settings there, and how it is asked for. Chosen by measuring, not by the papers.

Rows are data by the methods' words, so that no method is imported before it is asked for; a test builds them all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sfumato.errors import unknown
from sfumato.methods import index
from sfumato.methods.about import about
from sfumato.methods.index import Entry
from sfumato.tasks.chain import Chain
from sfumato.tasks.starts import How


@dataclass(frozen=True)
class Recipe:
    """A method as it suits a model, and what suits beside it."""

    word: str
    """The method's."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Its fields that differ from the paper's."""
    guidance: float | None = None
    """Of an edit; None for the method's own."""
    start: How | None = None
    """How a picture is inverted for it; None where it does so itself."""
    side: int | None = None
    """Shorter side at which pictures are read; None for the model's own."""
    kind: str | None = None
    """What to call a thing that is learned, where nobody says what it is."""
    model: str = "stilllife"
    preset: str = "still-life"
    """Its name on a command line."""
    head: bool = False
    """Is it of the head that a painting method learns?"""

    @property
    def method(self) -> Any:
        entry = index.find(self.word)
        return (entry.learner if self.head else entry.method)(**self.settings)


EDITING = 4.0
"""Guidance of edits on the built-in model; the published 7.5 burns its colours."""
BLEND = 0.6
"""Threshold of Prompt-to-Prompt's blend there: more of the background is kept."""
DEFAULTS = "defaults"
"""The preset of a method as it is by itself, where on a model it is what suits that unless other is said."""
TWICE = 256
"""Side at which the built-in model reads: twice its own, as its cells are large."""
FINEST = ("up_blocks.3.attentions.0",)
"""Its layer whose maps tell a thing's place from the first steps on."""
_FEATURES = {
    "t": 51,
    "layers": (
        "down_blocks.1.attentions.1",
        "up_blocks.2.attentions.0",
        "up_blocks.2.attentions.1",
        "up_blocks.3.attentions.1",
    ),
    "standard": True,
    "ensemble": 2,
}
_INSTEAD = {"blocks": "layers"}
"""Where the first is asked for, the second is not what suits."""
_HEAD = {"standard": True, "dim": 32, "rate": 2e-3}
_PARTS = (0.5, 0.5, 0.5, 1.0)
"""Of its scales, the finest maps count most: 16 x 16 cells."""

_TRAINED_PREPOSITIONS = ("above", "at", "behind", "by", "from", "in", "of", "on", "to")

_ROWS = (
    # Editing. Of the inversions for methods without their own, the edit-friendly one does best.
    Recipe("prompt-to-prompt", guidance=EDITING, start="edit-friendly"),
    # From the published layer on, 8 x 8 cells, little of the source comes back.
    Recipe("masactrl", {"layer": 0.0}, EDITING, "edit-friendly"),
    # At the published quarter, 4 x 4 cells, features hold next to nothing: 16.1 dB to the truth, here 19.8.
    Recipe("plug-and-play", {"res": 0.5}, EDITING, "edit-friendly"),
    # Two pictures moved by a quarter are at 24.0 and 23.2 dB; injected directly at 22.2 and 16.7.
    Recipe("feature-transfer", {"res": 0.5, "inject": "guided"}, EDITING),
    # 0.79 of 14 edits are read as asked, 0.64 as published; the background falls from 37 to 31 dB.
    Recipe("diff-edit", {"encode": 0.3, "threshold": 0.25}, EDITING),
    # With whole sentences, the source's in ``remove``: its captions are sentences, phrases mean little to it.
    Recipe("ledits", {"scale": 3.5, "threshold": 0.7, "masks": "noise", "source_scale": 1.0}),
    # Five of six are read as asked at 23.9 dB to the truth; the published guidances burn (18.2 dB).
    Recipe("flow-edit", {"source_scale": 1.5, "target_scale": 4.0, "skip": 0.4}),
    # Seven of nine are read as asked, as at the published 5.5, 0.8 dB nearer to the truth.
    Recipe("kv-edit", {"target_scale": 4.0}),
    # The background stays at 27.6 dB, as published at 21.5, with as many edits right.
    Recipe("delta-denoising", {"steps": 100}, EDITING),
    # At rates of 0.5 and the published 2 the background is at 17.8 and 13.9 dB, here at 22.5.
    Recipe("collaborative-editing", {"rate": 0.2, "steps": 60}, EDITING),
    # As many are read as asked as with the published 1.5 and 7.5, 2.2 dB nearer to the truth.
    Recipe("instruct-pix2pix", {"image_scale": 2.0}, 5.0, model="stilllife-instruct"),
    # Control. In the authors' layers a thing's word is hardly attended inside of it, and energies do not fall.
    Recipe("layout-guidance", {"scale": 60.0, "iterations": 3, "until": 0.4, "layers": FINEST}),
    Recipe("box-diff", {"res": 1.0, "layers": FINEST, "refinements": 0}),
    # 8 x 8 and 16 x 16 cells in place of 2 x 2 and 4 x 4; half the descents do as well.
    Recipe(
        "llm-grounded",
        {"guide": 4.0, "iterations": (2, 1, 1, 1, 1, 0), "layers": ("down_blocks.0", "up_blocks.3"), "res": 1.0},
    ),
    # With a background prompt ("on grass"). Regions in half of the steps: things fade.
    Recipe("region-prompts", {"whole": 0.0, "until": 0.3}),
    # Of 480 scenes: of 20 things 15 are in their boxes, 16 by colour (region prompts 13, 15); with all kept 12, 15.
    Recipe(
        "spatext",
        {
            "steps": 420,
            "batch": 4,
            "rate": 1.5e-4,
            "first_rate": 6e-4,
            "since": 0.3,
            "falls": 1.0,
            "boxes": 0.5,
            "worded": 0.5,
            "kept": 0.6,
            "templates": ("{}", "a {}"),
        },
        head=True,
    ),
    # Regions overlap the things by 0.73 to 0.76, as published by 0.39 and less.
    Recipe("rich-text", {"res": 1.0, "threshold": 0.6}),
    # By the finest maps, as sharp as what Stable Diffusion has at a quarter, things go where they are sent.
    Recipe("self-guidance", {"res": 1.0, "shape_weight": 3.0}),
    # Its middle block has 2 x 2 tokens, where either changes nothing one can see.
    Recipe("perturbed-attention", {"scale": 1.0, "layers": ("up_blocks.3",)}),
    Recipe("smoothed-energy", {"scale": 1.0, "layers": ("up_blocks.2",)}),
    # Faces of 64 x 64 pixels: in all steps it takes 2 to 9 % of their detail, in the later half it adds 2 to 5 %.
    Recipe(
        "self-attention-guidance",
        {"scale": 1.0, "sigma": 9 / 256, "reach": 15 / 9, "layers": ("up_blocks.0.attentions.2",), "since": 0.5},
        model="ddpm64",
        preset="pixels",
    ),
    # Reading. Its self-attention is far more alike: the published threshold makes every picture one segment.
    Recipe("diff-seg", {"threshold": 0.07, "least": 1.0}, side=TWICE),
    # Segments' scores are close to each other, so borders weigh more; behind diff-seg IoU 0.60 from 0.55.
    Recipe("graph-cut", {"smooth": 4.0, "neighbours": 8}),
    # The encoder's last layer has 4 x 4 cells (IoU 0.24, here 0.63); twice the side gains 0.01 in eight times the time.
    Recipe("normalised-cut", {"stage": "up", "least": 1.0, "which": 0}),
    # IoU 0.76, as published 0.20: many layers look at a thing's word all over the picture.
    Recipe("text-attribution", {"threshold": 0.55, "steps": (1, 101, 201), "least": 0.5, "stage": "up"}, side=TWICE),
    # By its finest maps alone: IoU 0.85 from a box, 0.61 from a click.
    Recipe("propagation", {"least": 1.0}, side=TWICE),
    # IoU 0.77 with one shot; fused at all sites 0.67.
    Recipe(
        "few-shot",
        {"t": 101, "layers": (*FINEST, "up_blocks.3.attentions.1"), "fuse": False, "threshold": 0.67},
        side=TWICE,
    ),
    # Within 40 steps at 1e-4 the error is a sixth higher, at 1e-3 as high.
    Recipe("diffews", {"steps": 240, "rate": 4e-4}),
    # Without the coarse blocks and the last step IoU 0.53, here 0.58; longer, wider and more pixels are no better.
    Recipe(
        "label-efficient",
        {
            "t": (0, 50, 150),
            "blocks": (5, 7, 9, 11, 12, 14, 15, 17),
            "batch": 256,
            "pixels": 512,
            "sure": 20,
            "epochs": 20,
            "standard": True,
        },
        side=TWICE,
    ),
    # Features of the three pairs are alike by 0.18, 0.14 and 0.00; shifts of 0, 0.05 and 0.15 do as well (0.19, 0.20).
    Recipe("stego", _HEAD | {"steps": 150, "batch": 8, "shifts": (0.1, 0.15, 0.3), "settled": True}, side=TWICE),
    # Of ten words 0.36, of things 0.22; not tuned.
    Recipe(
        "pacl",
        {"steps": 150, "rate": 2e-3, "batch": 48, "cells": 96, "nouns": 0.7, "sharpness": 10.0, "standard": True},
        side=TWICE,
    ),
    # Mean IoU 0.17 of six classes, as k-means on the same features (0.16); other settings were not tried.
    Recipe("picie", _HEAD | {"epochs": 3, "batch": 16}, side=TWICE),
    Recipe("dift", {**_FEATURES, "refine": "local"}, side=TWICE),
    # Plain renders: its ControlNet does not paint what hangs in the air. 8 views as near as its own scenes; man and
    # woman are 0.039 of the diameter apart, without sides and places 0.071, by up block 1 as published 0.079; twice the
    # side is no nearer. Places that count 1 or 4: 0.044, 0.038.
    Recipe(
        "diff3f",
        {
            "azimuths": tuple(45.0 * i for i in range(8)),
            "elevations": (15.0,),
            "fov": 40.0,
            "distance": 3.2,
            "size": None,
            "look": "shaded",
            "t": 151,
            "layers": (
                "down_blocks.1.attentions.1",
                "down_blocks.2.attentions.1",
                "up_blocks.1.attentions.2",
                "up_blocks.2.attentions.2",
            ),
            "standard": True,
            "sided": True,
            "places": 2.0,
        },
    ),
    Recipe("optimal-transport", {"epsilon": 0.1, **_FEATURES}, side=TWICE),
    # At a rate of 0.02 the loss is twice as high, at 0.3 a third higher; larger images made no difference.
    Recipe("prompt-embeddings", {"parts": _PARTS, "steps": 40, "rate": 0.1, "restarts": 3}),
    # Points of robots from the front are found to 0.075 of their boxes; mean positions are 0.164 away.
    Recipe(
        "unsupervised-keypoints",
        {"tokens": 64, "steps": 150, "rate": 0.02, "parts": _PARTS, "grid": 32, "sigma": 1 / 16, "batch": 4},
    ),
    # Distilling. At 7.5 pictures are cleanest; more burns or is grainy. Negative words it never read.
    Recipe("collaborative-score-distillation", {"guidance": 7.5}),
    Recipe("score-jacobian-chaining", {"guidance": 7.5}),
    Recipe("hifa", {"guidance": 7.5}),
    Recipe("score-distillation-bridge", {"guidance": 7.5}),
    # A lower guidance, and a copy that learns faster, for runs of a few hundred steps.
    Recipe("variational-score-distillation", {"guidance": 3.0, "rate": 5e-3, "conditioned": False}),
    Recipe("entropic-score-distillation", {"guidance": 3.0, "rate": 5e-3}),
    # By plain descent at a rate of 1 in 50 steps 4 of 4 are read right, 3 with 0.3 of new noise.
    Recipe("score-distillation-via-inversion", {"entropy": 0.0}),
    # As published: three or four of four prompts are read as asked, with the grain of the start.
    Recipe("noise-free-score-distillation"),
    Recipe("classifier-score-distillation"),
    Recipe("interval-score-matching"),
    # As published; at a guidance of 4 a red cube that should be blue is purple after 100 steps.
    Recipe("delta-score"),
    # Learning. Its captions are sentences of a thing on a ground; photographs it was never told of.
    # With four vectors a red teapot is a red, glossy body with a spout's stub; with one a ball.
    Recipe("textual-inversion", {"templates": ("a {}",), "rate": 1e-2, "steps": 120, "vectors": 4}, kind="cube"),
    # As many vectors as that has. At a rate that stays they grow longer, and a thing is painted in more pieces.
    Recipe(
        "extended-textual-inversion",
        {"templates": ("a {}",), "steps": 80, "batch": 4, "vectors": 4, "falling": True},
        kind="cube",
    ),
    # The words that its captions have. Its errors are small: at the published weight steering alone moves the vector.
    Recipe(
        "reversion",
        {"rate": 1e-2, "steps": 100, "batch": 8, "steer": 5e-4, "alpha": 1.0, "basis": _TRAINED_PREPOSITIONS},
    ),
    # Three steps of four are what a twentieth of textual inversion's time holds. The encoder's rate is the published
    # one: its inputs are thousands, and at 1e-3 its word is lost.
    Recipe(
        "encoder-tuning",
        {"templates": ("a {}",), "steps": 3, "batch": 4, "weights_rate": 7e-2, "penalty": 1e-5, "since": 0.2},
        kind="cube",
    ),
    # At 1e-3 other things stay as they were, at 4e-3 they fray; at 2e-3 the colour is learned with the shape.
    Recipe("lora", {"rate": 2e-3, "rank": 8, "steps": 100, "batch": 2}, kind="cube"),
    Recipe(
        "break-a-scene",
        {"templates": ("{}",), "rate": 1e-4, "first_rate": 1e-2, "steps": 120, "batch": 2, "prior_weight": 0.0},
        kind="cube",
    ),
    Recipe("dream-booth", {"rate": 1e-4, "steps": 180, "batch": 2, "prior_weight": 0.0}, kind="cube"),
    # Eight cameras all around, an azimuth each. The network hardly reads views by words: neither turns a thing.
    Recipe(
        "azimuth-inversion",
        {"templates": ("a {}",), "rate": 1e-2, "steps": 100, "azimuths": 8, "neighbours": 2, "vectors": 2},
        kind="cube",
    ),
    # All layers alike, at a third of the cost; vectors of views that are far apart from the first step on.
    Recipe(
        "view-inversion",
        {
            "templates": ("a {}",),
            "rate": 4e-3,
            "steps": 100,
            "batch": 4,
            "bypass": 0.0,
            "layer_spread": 0.0,
            "camera_spread": 1.5,
            "begin": "kind",
        },
        kind="cube",
    ),
)
RECIPES = {(row.model, row.word): row for row in _ROWS}


def find(word: str, model: str = "stilllife") -> Recipe:
    """Of a method. ``SfumatoError`` that lists those of the model for a word that has none."""
    if (model, word) not in RECIPES:
        raise unknown(f"recipe for {model}", word, [known for of, known in RECIPES if of == model])
    return RECIPES[model, word]


def presets(entry: Entry, head: bool = False) -> dict[str, Any]:
    """Other settings of a method by their words: those of its own file, then those that suit a model; or of the head
    that it learns. Of what suits a model unless other is said, also its own ``defaults``."""
    own = head and bool(entry.head)
    suiting = {name: row.method for name, row in _suiting(entry, head).items()}
    if usual(entry, head):
        suiting[DEFAULTS] = (entry.learner if own else entry.method)()
    return ({} if own else entry.presets) | {
        name: method for name, method in suiting.items() if name not in entry.presets
    }


def preset_names(entry: Entry, head: bool = False) -> list[str]:
    """Words of ``presets``, as its file tells them, which is not imported."""
    own = () if head and entry.head else about(entry).presets
    return list(dict.fromkeys([*own, *_suiting(entry, head), *([DEFAULTS] if usual(entry, head) else [])]))


def _suiting(entry: Entry, head: bool = False) -> dict[str, Recipe]:
    own = head and bool(entry.head)
    return {row.preset: row for row in RECIPES.values() if row.word == entry.word and row.head == own}


def usual(entry: Entry, head: bool = False) -> Recipe | None:
    """What a method is on a model unless other is said, where that is not as published."""
    own = head and bool(entry.head)
    chosen = own or entry.group not in index.PAINTING + index.DISTILLING
    return next(iter(_suiting(entry, head).values()), None) if chosen else None


def fields_of(entry: Entry, preset: str, head: bool = False) -> frozenset[str]:
    """The fields that a preset asks for: all, but of one that suits a model, which is what that has anyway."""
    kind = entry.learner if head else entry.method
    return frozenset() if preset in _suiting(entry, head) else frozenset(f.name for f in fields(kind) if f.init)


def default(spec: str) -> Any:
    """A method as it is, or one of its presets, those that suit a model too: ``masactrl``, ``masactrl:still-life``."""
    return index.default(spec, presets)


def learning(word: str, model: str) -> tuple[Any, str]:
    """A method that learns a concept and what to call the thing: as it suits the model, or else as published."""
    row = RECIPES.get((model, word))
    method = default(word) if row is None else row.method
    return method, (row and row.kind) or method.usual_kind


def teaching(word: str, model: str) -> Any:
    """A method that learns a head: as it suits the model, or else as published."""
    row = RECIPES.get((model, word))
    return index.find(word).learner() if row is None else row.method


def filled(given: Any, suiting: Any, named: Collection[str] = ()) -> Any:
    """A method as it was asked for; of what was not said as it suits a model.

    ``named``: fields that were asked for, also with the value that they have anyway.
    """
    cls = type(given)
    new = {f.name: getattr(given, f.name) for f in fields(cls) if f.init}
    chosen = {k: v for k, v in new.items() if k in named or v != getattr(cls(), k)}
    return cls(**{**vars(suiting), **{v: new[v] for k, v in _INSTEAD.items() if k in chosen and v in new}, **chosen})


def suited(
    word: str, model: str, side: int | None, given: Any = None, named: Collection[str] = ()
) -> tuple[Any, int | None]:
    """A reading method and what it sees: what was not said of it as it suits the model, or else as published.

    ``given`` is the method as it was asked for, if it was, and ``named`` as of ``filled``: all of its fields are as
    published, and so is the side.
    """
    row, given = RECIPES.get((model, word)), default(word) if given is None else given
    if row is None or row.head:
        return given, side
    whole = {*named} >= {f.name for f in fields(given) if f.init}
    return filled(given, row.method, named), side if whole else side or row.side


def reading(chain: Chain, word: str | None, model: str, side: int | None) -> tuple[Chain, int | None]:
    """Methods that read as they were asked for, or the one of ``word`` where none was, each ``suited`` to the model;
    the side is the first one's."""
    chain = chain if chain.items or word is None else Chain((default(word),), (word,), (frozenset(),))
    asked = zip(chain.names, chain.items, chain.named, strict=True)
    found = [suited(index.find(name).word, model, side, item, named) for name, item, named in asked]
    return replace(chain, items=tuple(item for item, _ in found)), found[0][1] if found else side
