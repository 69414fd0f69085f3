"""How fast a field is rendered and learned from, and what a step of distilling into it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from sfumato.bench.ports import threestudio
from sfumato.bench.report import Figure, Target
from sfumato.bench.session import Session
from sfumato.distill import distil
from sfumato.learning.seeds import Draws, generator
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.scene.cameras import Rays, orbit
from sfumato.scene.fields import Voxels
from sfumato.scene.lifting import Lifting
from sfumato.scene.render import FieldScene
from sfumato.scene.sampling import Sampling
from sfumato.tasks.lift import blank
from sfumato.tasks.lift_recipes import recipe

RAYS, SAMPLES, CELLS = 4096, 64, 64
NARROW = 25.0
"""Field of view, in degrees, of which all rays meet the box; others would cost nothing."""

MEANINGS = {
    "render_rays_per_second": f"ray samples a second, forward and backward, of {CELLS}^3 voxels, {SAMPLES} on a ray, "
    "all of them asked for; the best of n",
    "render_only_per_second": "the same without gradients",
    "sds_step_over_public": "time of a step of lifting by SDS, one view, over one of the public guidance code "
    "with the same field, renderer and encoder",
}
TARGETS = {"render_rays_per_second": Target(1e6), "sds_step_over_public": Target(0.7, at_least=False)}
PROMPT, GUIDANCE, STEPS = "a red cube on grass", 20.0, 4


def rendered(session: Session) -> Mapping[str, Figure]:
    scene = FieldScene(Voxels(CELLS), sampling=Sampling(SAMPLES)).to(session.device)
    rays = orbit(1, (64, RAYS // 64), fov=NARROW).to(session.device).rays()
    flat = Rays(*(x.flatten(0, -2) for x in rays))

    def forward() -> torch.Tensor:
        return scene.trace(flat).values.square().sum()

    def both() -> None:
        scene.zero_grad()
        forward().backward()

    def only() -> None:
        with torch.no_grad():
            forward()

    ways = {"render_rays_per_second": both, "render_only_per_second": only}
    return {key: RAYS * SAMPLES / session.quickest(work) for key, work in ways.items()}


def steps(session: Session) -> Mapping[str, Figure]:
    model, lift = session.model, recipe("score-distillation", "stilllife")
    cameras = replace(lift.cameras, n=1)

    def scene() -> Lifting:
        return Lifting(blank(lift, model), STEPS, (model.size, model.size))

    def ours() -> None:
        distil(model, scene(), PROMPT, ScoreDistillation(GUIDANCE), STEPS, viewpoints=cameras)

    def public() -> None:
        made, theirs = scene(), threestudio.PublicSDS(model, PROMPT, GUIDANCE)
        adam = torch.optim.Adam(made.parameters(), lr=0.01)
        for step in range(STEPS):
            adam.zero_grad()
            latents = model.encode(made.render(cameras.draw(Draws(0, step))).images)
            level = int(torch.randint(20, 980, (), generator=generator(0, step)))
            theirs.loss(latents, level).backward()
            adam.step()

    return {"sds_step_over_public": session.ratio(ours, public)}


MEASURES = (
    (("render_rays_per_second", "render_only_per_second"), rendered),
    (("sds_step_over_public",), steps),
)
