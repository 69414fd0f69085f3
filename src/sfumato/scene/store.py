"""A scene as a file: safetensors whose header says what it is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfumato.distill.generators import Generator
from sfumato.errors import SfumatoError
from sfumato.io.files import from_json, save_tensors, shared
from sfumato.learning.checkpoint import read
from sfumato.scene.backgrounds import Background, Directional, Harmonic, Horizon, Outdoors, Plain
from sfumato.scene.fields import Field, Voxels
from sfumato.scene.fields_hash import HashGrid
from sfumato.scene.fields_networks import NeRF, Residual
from sfumato.scene.gaussians import Gaussians
from sfumato.scene.regions import Box, Region, Space
from sfumato.scene.render import FieldScene, Sampling

FIELDS: tuple[type[Field], ...] = (Voxels, HashGrid, NeRF, Residual)
REGIONS: tuple[type[Region], ...] = (Box, Space)
BACKGROUNDS: tuple[type[Background], ...] = (Background, Plain, Harmonic, Directional, Horizon, Outdoors)


def save_scene(path: str | Path, scene: FieldScene | Gaussians, about: dict[str, Any] | None = None) -> Path:
    """Write it; ``about`` is kept beside (a prompt, cameras it was seen by)."""
    behind, path = scene.background, Path(path)
    if isinstance(scene, Gaussians):
        header = {
            "gaussians": scene.settings(), "background": [type(behind).__name__, behind.settings()],
            "about": about or {},
        }  # fmt: skip
        save_tensors(path, scene.state_dict(), {"scene": json.dumps(shared(header))})
        return path
    settings = scene.field.settings()
    region = settings.pop("region")
    header = {
        "field": type(scene.field).__name__, "settings": settings, "region": [type(region).__name__, vars(region)],
        "background": [type(behind).__name__, behind.settings()], "sampling": vars(scene.sampling),
        "about": about or {},
    }  # fmt: skip
    save_tensors(path, scene.state_dict(), {"scene": json.dumps(shared(header))})
    return path


def load_scene(path: str | Path) -> tuple[Generator, dict[str, Any]]:
    """The scene and what is known about it. Raises ``SfumatoError`` for a file that is no scene, or is damaged."""
    tensors, header = read(path)
    if "scene" not in header:
        raise SfumatoError(f"{path} is no scene, but other weights; make a scene by sfumato reconstruct or lift")
    try:
        made = from_json(header["scene"], dict)
        if "gaussians" in made:
            scene = Gaussians.of_settings(**made["gaussians"], background=_made(BACKGROUNDS, *made["background"]))
            scene.load_state_dict(tensors)
            return scene, made["about"]
        region = _made(REGIONS, *made["region"])
        field = _made(FIELDS, made["field"], {**made["settings"], "region": region})
        scene = FieldScene(field, _made(BACKGROUNDS, *made["background"]), Sampling(**made["sampling"]))
        scene.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, SfumatoError) as e:
        reason = " ".join(str(e).split())[:200]
        raise SfumatoError(f"{path} is a scene that is not known here ({reason}); make it again") from e
    return scene, made["about"]


def _made(kinds: tuple[type, ...], name: str, settings: dict[str, Any]) -> Any:
    """One of some kinds, by its name; lists are tuples, as JSON has none."""
    of = {kind.__name__: kind for kind in kinds}
    if name not in of:
        raise SfumatoError(f"there is no {name}, but {', '.join(of)}")
    return of[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
