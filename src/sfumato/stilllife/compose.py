"""From words to a scene: draw a still life of which a caption is true; what it leaves open is left to chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sfumato.errors import SfumatoError
from sfumato.stilllife.captions import Said, SaidThing, truth
from sfumato.stilllife.scene import RELATIONS, SUPPORTS, Scene, Thing, sample_scene

TRIES = 200


def scene_of(stated: Said, rng: np.random.Generator) -> Scene:
    """A scene with exactly the things that were said, in the places, views and appearance that were said.

    Raises ``SfumatoError`` when the words contradict one another or the world, as in "a cube on top of a ring".
    """
    wanted = [thing for thing in stated.things for _ in range(thing.count)]
    if stated.relation == "on top of" and wanted[1].kind not in SUPPORTS:
        raise SfumatoError(f"nothing stands on a {wanted[1].kind}; things stand on a {' or a '.join(SUPPORTS)}")
    overhead = any(t.view == "overhead" for t in wanted)
    wrong = ["no room for them"]
    for _ in range(TRIES):
        frame = sample_scene(
            rng,
            count=len(wanted),
            relation=stated.relation or (str(rng.choice(RELATIONS[:4])) if len(wanted) == 2 else None),
            style=stated.style,
            view="overhead" if overhead else "front",
            same=False,
        )
        try:
            things = tuple(_dress(t, w, rng) for t, w in zip(frame.things, wanted, strict=True))
            scene = replace(
                frame, things=things, ground=stated.ground or frame.ground, light=stated.light or frame.light
            )
        except SfumatoError:  # in one another: draw other places
            continue
        wrong = truth(scene, stated)
        if not wrong:
            return scene
    raise SfumatoError(f"no such scene could be drawn: not true that {'; '.join(wrong)}")


def _dress(thing: Thing, stated: SaidThing, rng: np.random.Generator) -> Thing:
    """The drawn thing, with what was said of it and a shape and a yaw of its kind."""
    model = sample_scene(
        rng, count=1, kinds=(stated.kind,), view=stated.view if stated.view != "overhead" else None
    ).things[0]
    return replace(
        model,
        colour=stated.colour or model.colour,
        material=stated.material or model.material,
        size=stated.size or thing.size,  # of what stands on another, not larger than that
        x=thing.x,
        z=thing.z,
        on=thing.on,
    )
