"""How fast a field is rendered and learned from."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from sfumato.bench.report import Figure, Target
from sfumato.bench.session import Session
from sfumato.scene.cameras import Rays, orbit
from sfumato.scene.fields import Voxels
from sfumato.scene.render import FieldScene
from sfumato.scene.sampling import Sampling

RAYS, SAMPLES, CELLS = 4096, 64, 64

MEANINGS = {
    "render_rays_per_second": f"ray samples a second, forward and backward, of {CELLS}^3 voxels, {SAMPLES} on a ray, "
    "all of them asked for; the best of n",
    "render_only_per_second": "the same without gradients",
}
TARGETS = {"render_rays_per_second": Target(1e6)}


def rendered(session: Session) -> Mapping[str, Figure]:
    scene = FieldScene(Voxels(CELLS), sampling=Sampling(SAMPLES)).to(session.device)
    rays = orbit(1, (64, RAYS // 64)).to(session.device).rays()
    flat = Rays(*(x.flatten(0, -2) for x in rays))

    def forward() -> torch.Tensor:
        return scene.trace(flat).values.square().sum()

    def both() -> None:
        scene.zero_grad()
        forward().backward()

    def only() -> None:
        with torch.no_grad():
            forward()

    out = {}
    for key, work in (("render_rays_per_second", both), ("render_only_per_second", only)):
        work()
        seconds = []
        for _ in range(session.n):
            began = time.perf_counter()
            work()
            if session.device.type == "cuda":
                torch.cuda.synchronize(session.device)
            seconds.append(time.perf_counter() - began)
        out[key] = RAYS * SAMPLES / min(seconds)
    return out


MEASURES = ((("render_rays_per_second", "render_only_per_second"), rendered),)
