"""Does what was learned look like the thing, and do other words of the caption still count?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.bench.personalise.session import NAME, NEAR, PersonalSession, Subject
from sfumato.bench.personalise.session import painted as pictures_of
from sfumato.bench.report import Comparison, Figure, Target
from sfumato.bench.units import Row, columns
from sfumato.methods import index
from sfumato.stilllife.oracle import Reading
from sfumato.tasks import recipes
from sfumato.tasks.learn import Photographs

KEYS = ("subject", "grey", "kind", "prompt", "seconds", "peak_mb")
UNTRAINED, PLAIN = "untrained word", "plain"
WORLDS = (("day", "photo"), ("night", "photo"), ("day", "watercolour"), ("sunset", "photo"))
"""Light and style of the new captions."""
_LIGHTS = {"day": "", "night": " at night", "sunset": " at sunset"}
KNOWN = "lamp"
"""A kind that the model was trained on: what of a caption it paints right anyway."""

MEANINGS = {
    "subject_held": "likeness of held out renders of a thing to each other, by the image features of the tiny CLIP",
    "subject_untrained": "likeness of what the model paints under the kind's word, which it was never trained on",
    "subject_copies": "likeness of the pictures that were learned from",
    "grey_held": "likeness of held out renders to each other without their colour",
    "grey_untrained": "of the kind's word, never trained, to them",
    "kind_held": "part of held out renders that are most like their own kind, of all kinds in the same colour",
    "kind_untrained": "of the kind's word, never trained",
    "prompt_plain": "part of ground, light and style read right in paintings of a kind that the model knows",
}
TARGETS: dict[str, Target] = {}


def _needs_more(word: str) -> bool:
    """Does it learn from more than pictures of a thing?"""
    method = index.find(word).method
    return method.wants_captions or method.wants_cameras


METHODS = tuple(
    word for word in index.words(index.LEARNING) if ("stilllife", word) in recipes.RECIPES and not _needs_more(word)
)
WHOLE = ("dream-booth", "lora")
"""Those that are to come near the thing itself."""
for _word in METHODS:
    _key = _word.replace("-", "_")
    MEANINGS |= {
        f"subject_{_key}": f"likeness by {_word}, in parts of a held out render's own above the untrained word's",
        f"grey_{_key}": f"likeness by {_word} without colour",
        f"kind_{_key}": f"part of paintings by {_word} that are most like the thing's kind, of all in its colour",
        f"prompt_{_key}": f"ground, light and style read right by {_word}, in parts of plain sampling's",
    }
    TARGETS |= {f"subject_{_key}": Target(0.8 if _word in WHOLE else 0.0), f"prompt_{_key}": Target(0.7)}


def captions(subject: Subject, what: str) -> list[str]:
    """New captions: a ground that no picture had, with a light and a style."""
    return [
        f"a {what} on {subject.ground}{_LIGHTS[light]}{'' if style == 'photo' else f', {style}'}"
        for light, style in WORLDS
    ]


def right(readings: Sequence[Reading], subject: Subject) -> float:
    """Part of the captions' statements that are read right."""
    found = []
    for reading, (light, style) in zip(readings, WORLDS, strict=True):
        found += [reading.ground == subject.ground, reading.light == light, reading.style == style]
    return float(np.mean(found))


def judged(session: PersonalSession, images: Float[Tensor, "n 3 h w"], subject: Subject) -> Row:
    """Paintings of the four captions. Where the thing is, is the oracle's mask; whether it is the thing, is not asked
    of it. Likeness is of the first caption's world alone, others change the thing's colours."""
    readings = session.oracle.read(images)
    masks = torch.stack([_largest(reading) for reading in readings])
    day = [i for i, world in enumerate(WORLDS) if world == ("day", "photo")]
    by_day = images[day], masks[day], subject
    return {
        "subject": float(np.mean(session.alike(*by_day))),
        "grey": float(np.mean(session.alike(*by_day, grey=True))),
        "kind": float(np.mean(session.own_kind(*by_day))),
        "prompt": right(readings, subject),
    }


def _largest(reading: Reading) -> Bool[Tensor, "h w"]:
    sizes = [thing.pixels for thing in reading.things]
    number = 1 + int(np.argmax(sizes)) if sizes else -1
    return torch.from_numpy(reading.mask == number)


def subjects(session: PersonalSession) -> Mapping[str, Figure]:
    """All methods on the same things, beside the word of a kind that was never trained and one that was."""
    ways: dict[str, Callable[[Subject], tuple[Row, Tensor]]] = {
        PLAIN: lambda s: painted(session, session.model, s, KNOWN),
        UNTRAINED: lambda s: painted(session, session.model, s, s.kind),
    }
    ways |= {word: lambda s, word=word: _learned(session, word, s) for word in METHODS}
    things = {f"subject {i}": subject for i, subject in enumerate(session.subjects)}
    found = session.judged("subject", ways, things, "personal")
    session.compared["subject"] = Comparison(KEYS, found)
    held, grey = (np.array([np.mean(_others(session, s, grey)) for s in session.subjects]) for grey in (False, True))
    copies = np.array([np.mean(session.alike(s.pictures, s.masks, s)) for s in session.subjects])
    untrained, plain = (np.array(columns(found[of], key)) for of, key in ((UNTRAINED, "subject"), (PLAIN, "prompt")))
    kinds = [np.mean(session.own_kind(s.held, s.held_masks, s)) for s in session.subjects]
    out: dict[str, Figure] = {
        "subject_held": held, "subject_copies": copies, "subject_untrained": untrained, "prompt_plain": plain,
        "grey_held": grey, "grey_untrained": np.array(columns(found[UNTRAINED], "grey")),
        "kind_held": np.array(kinds), "kind_untrained": np.array(columns(found[UNTRAINED], "kind")),
    }  # fmt: skip
    for word in METHODS:
        key = word.replace("-", "_")
        own = np.array(columns(found[word], "subject"))
        out[f"subject_{key}"] = float((own - untrained).mean() / (held - untrained).mean())
        out |= {f"{of}_{key}": np.array(columns(found[word], of)) for of in ("grey", "kind")}
        out[f"prompt_{key}"] = float(np.mean(columns(found[word], "prompt")) / plain.mean())
        session.methods[word] = {k: float(np.mean(v)) for k in KEYS if (v := columns(found[word], k))}
    return out


def _others(session: PersonalSession, subject: Subject, grey: bool = False) -> list[float]:
    """Each held out render's likeness to the others, itself left out."""
    n = len(subject.held)
    alike = session.alike(subject.held, subject.held_masks, subject, grey)
    return [(n * mean - 1) / (n - 1) for mean in alike]


def painted(session: PersonalSession, model: object, subject: Subject, what: str) -> tuple[Row, Tensor]:
    seeds = range(subject.seed, subject.seed + len(WORLDS))
    images = pictures_of(model, captions(subject, what), seeds)
    return judged(session, images, subject), torch.cat([*subject.pictures[:2], *images], -1)


def _learned(session: PersonalSession, word: str, subject: Subject) -> tuple[Row, Tensor]:
    method = recipes.learning(word, "stilllife")[0]
    photographs = Photographs((), subject.pictures, subject.masks.float() if method.wants_masks else None)
    encoder = session.encoder if method.wants_encoder else None
    how = {"kind": NEAR[subject.kind], "seed": subject.seed, "encoder": encoder}
    concept, took = session.learned(NAME, photographs, method, **how)
    row, image = painted(session, concept.on(session.model), subject, NAME)
    return {**row, **took}, image


def learned(session: PersonalSession, word: str, i: int) -> Row:
    """Of a method and one of the subjects, kept as all are."""
    return session.units.get(session.unit("subject", word, i), lambda: _learned(session, word, session.subjects[i]))[0]


def by_day(session: PersonalSession, word: str, i: int) -> tuple[Float[Tensor, "1 3 h w"], Bool[Tensor, "1 h w"]]:
    """What a method, or the untrained word, paints of a subject under the first caption, and where the thing is."""
    of = session.subjects[i]

    def work() -> tuple[Row, Tensor]:
        return painted(session, session.model, of, of.kind) if word == UNTRAINED else _learned(session, word, of)

    strip = session.units.get(session.unit("subject", word, i), work)[1]  # two pictures lie before what is painted
    image = strip.split(strip.shape[-2], -1)[2 + WORLDS.index(("day", "photo"))][None]
    return image, _largest(session.oracle.read(image)[0])[None]


MEASURES: tuple[tuple[tuple[str, ...], Callable[[PersonalSession], Mapping[str, Figure]]], ...] = (
    (tuple(MEANINGS), subjects),
)
