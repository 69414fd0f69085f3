"""How fast Gaussians are rendered and learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from sfumato.bench.report import Figure, Target
from sfumato.bench.session import Session
from sfumato.scene.cameras import orbit
from sfumato.scene.gaussians import Recipe, ball
from sfumato.scene.splatting import Backend

GAUSSIANS, SIDE = 4000, 128
SIZE = -3.5
"""The logarithm of their scales: some three pixels."""

MEANINGS = {
    "splat_ms": f"milliseconds for an image of {SIDE}^2 of a ball of {GAUSSIANS} Gaussians, forward and backward, in "
    "plain torch; the best of n",
    "splat_only_ms": "the same without gradients",
    "splat_gsplat_ms": "the same as splat_ms by gsplat, where it is installed and the device is CUDA",
}
TARGETS: Mapping[str, Target] = {}


def splatted(session: Session) -> Mapping[str, Figure]:
    """In plain torch."""
    both, only = _works(session, "torch")
    return {"splat_ms": 1e3 * session.quickest(both), "splat_only_ms": 1e3 * session.quickest(only)}


def by_gsplat(session: Session) -> Mapping[str, Figure]:
    """Raises ``SfumatoError`` where it cannot run."""
    return {"splat_gsplat_ms": 1e3 * session.quickest(_works(session, "gsplat")[0])}


def _works(session: Session, backend: Backend) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward and backward, and forward alone."""
    scene = ball(GAUSSIANS, 0.9, recipe=Recipe(growth=None), seed=session.seed).to(session.device)
    scene.backend = backend
    camera = orbit(1, (SIDE, SIDE)).to(session.device)
    with torch.no_grad():
        scene.scales.fill_(SIZE)

    def both() -> None:
        scene.zero_grad()
        scene.render(camera).images.square().sum().backward()

    def only() -> None:
        with torch.no_grad():
            scene.render(camera)

    return both, only


MEASURES = ((("splat_ms", "splat_only_ms"), splatted), (("splat_gsplat_ms",), by_gsplat))
