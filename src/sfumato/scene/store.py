"""A scene as a file: safetensors whose header says what it is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfumato.distill.generators import Generator
from sfumato.errors import SfumatoError
from sfumato.io.files import save_tensors
from sfumato.learning.checkpoint import read
from sfumato.scene.fields import Field, Voxels
from sfumato.scene.regions import Box, Region, Space
from sfumato.scene.render import FieldScene, Sampling

FIELDS: tuple[type[Field], ...] = (Voxels,)
REGIONS: tuple[type[Region], ...] = (Box, Space)


def save_scene(path: str | Path, scene: FieldScene, about: dict[str, Any] | None = None) -> Path:
    """Write it; ``about`` is kept beside (a prompt, cameras it was seen by)."""
    settings = scene.field.settings()
    region = settings.pop("region")
    header = {
        "field": type(scene.field).__name__, "settings": settings,
        "region": [type(region).__name__, vars(region)], "sampling": vars(scene.sampling), "about": about or {},
    }  # fmt: skip
    path = Path(path)
    save_tensors(path, scene.state_dict(), {"scene": json.dumps(header)})
    return path


def load_scene(path: str | Path) -> tuple[Generator, dict[str, Any]]:
    """The scene and what is known about it. Raises ``SfumatoError`` for a file that is no scene, or is damaged."""
    tensors, header = read(path)
    try:
        made = json.loads(header["scene"])
        kinds: dict[str, Any] = {k.__name__: k for k in (*FIELDS, *REGIONS)}
        kind, values = made["region"]
        region = kinds[kind](**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        field = kinds[made["field"]](**made["settings"], region=region)
        scene = FieldScene(field, sampling=Sampling(**made["sampling"]))
        scene.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise SfumatoError(f"{path} is no scene that is known here ({e}); make one by reconstruct or lift") from e
    return scene, made["about"]
