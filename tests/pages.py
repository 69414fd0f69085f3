"""The documents' code as a reader pastes it: found on a page, and run beside the files that pages take for granted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache, partial
from glob import glob
from inspect import signature
from pathlib import Path
from shutil import copy, copytree
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import families
import numpy as np
import solids
import torch
import trimesh
from PIL import Image

from sfumato.backbones import load as loading
from sfumato.backbones.load import load
from sfumato.core.schedule import Schedule
from sfumato.core.settings import Settings
from sfumato.io.files import write_json
from sfumato.learning.loop import Run
from sfumato.methods.edit import DiffEdit
from sfumato.stilllife import tokenizer, weights

ROOT = Path(__file__).parents[1]
FEW, FEWEST = 4, 2
"""Steps of runs, where nobody looks at the picture: up to so many as they are, of more the second."""
SHELL = ("sfumato ", "make ", "pip ", "python -m ", "torchrun ")
"""How lines of a shell begin."""
OTHERS: dict[str, Callable[[], Any]] = {
    "google/ddpm-cat-256": families.ddpm,
    "if-i-m": families.deepfloyd,
    "sd-2.1": families.FAMILIES["sd2"],
    "sdxl": families.sdxl,
    "stabilityai/stable-diffusion-3-medium-diffusers": families.sd3,
    "stabilityai/stable-video-diffusion-img2vid": partial(families.stable_video, frames=14),
    "moving": partial(families.animatediff, adapter={"motion_max_seq_length": 16}),
}
"""Models that are not here, and the tiny one that stands in; for others it is Stable Diffusion 1's."""
TINY = {
    "unet": {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "attention_head_dim": 2},
    "vae": {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2},
    "depth": {"conditioning_embedding_out_channels": (4, 4, 8, 8)},
    "clip": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
}
"""Widths of networks like those that ship, with all of their layers."""
KEPT = TemporaryDirectory(prefix="pages-")


class Block(NamedTuple):
    """Code of a page."""

    line: int
    """Where it begins, from 1."""
    code: str
    kind: str
    """``python``, ``sh``, or what else its fence says; of indented code it is seen."""

    @property
    def commands(self) -> list[list[str]]:
        """The arguments of each line of a shell that is ``sfumato``'s; as in a shell, # within a word is no comment."""
        lines = self.code.replace("\\\n", " ").splitlines() if self.kind in ("sh", "text") else []
        return [shlex.split(re.sub(r"\s# .*", "", line))[1:] for line in lines if line.startswith("sfumato ")]


def blocks(text: str) -> Iterator[Block]:
    """All code of a page, between fences or indented, in its order."""
    code = r"^```([^\n]*)\n(.*?)^```|^    [^\n]*\n(?:^    [^\n]*\n|^\n(?=    ))*"
    for found in re.finditer(code, text, re.DOTALL | re.MULTILINE):
        line = text[: found.start()].count("\n") + 1
        if found[1] is not None:
            yield Block(line + 1, found[2], {"py": "python"}.get(found[1], found[1]))
            continue
        inside = re.sub(r"^    ", "", found[0], flags=re.MULTILINE)
        for part in re.split(r"(?<=\n)\n(?=sfumato )", inside):
            yield Block(line, part, "sh" if part.startswith(SHELL) else "python")
            line += part.count("\n") + 1


def paste(page: Path, block: Block, names: dict[str, Any]) -> None:
    """Run Python as it stands; the traceback of an error has the page's own lines."""
    exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)


@cache
def _files() -> Path:
    """What pages take for granted beside them: a reader's pictures, with all that is known of them, and scenes."""
    from sfumato.media import pictures, video
    from sfumato.scene.fields import Voxels
    from sfumato.scene.render import FieldScene, Sampling
    from sfumato.scene.store import save_scene
    from sfumato.stilllife import captures
    from sfumato.stilllife.captions import parse
    from sfumato.stilllife.compose import scene_of
    from sfumato.stilllife.render import render

    place = Path(KEPT.name) / "files"
    texts = ["a red cube on grass", "a blue sphere on sand"]
    scenes = [scene_of(parse(text), np.random.default_rng(i + 4)) for i, text in enumerate(texts)]
    seen = render(scenes)
    shown = [pictures.picture(image) for image in seen.images]
    marked = [np.uint8(thing >= 0) for thing in seen.thing.numpy()]
    folders = ("photos", "labelled", "masks", "frames")
    photos, labelled, masks, frames = (place / name for name in folders)
    for folder in (photos, labelled, masks, frames):
        folder.mkdir(parents=True)
    for i, (picture, thing) in enumerate(zip(shown, marked, strict=True), 1):
        picture.save(photos / f"{i}.png")
        picture.save(labelled / f"{i}.png")
        Image.fromarray(thing).save(labelled / f"{i}-labels.png")
        Image.fromarray(thing * 255).save(masks / f"{i}.png")
        (labelled / f"{i}.txt").write_text(texts[i - 1])
        write_json(labelled / f"{i}-points.json", {"middle": [64, 60 + i]})
    shown[0].save(place / "photo.png")
    shown[1].save(place / "other.png")
    Image.fromarray(marked[0] * 255).save(place / "mask.png")
    for i in range(4):
        shown[0].save(frames / f"{i}.png")
    write_json(photos / "text.json", {"1.png": "a cube {} grass", "2.png": "a sphere {} sand"})
    write_json(place / "cameras.json", {"1.png": [0, 20], "2.png": [45, 20]})
    captures.write_views(place / "capture", scenes[0], captures.cameras_around(scenes[0], 4), 128)
    save_scene(place / "scene.safetensors", FieldScene(Voxels(16), sampling=Sampling(samples=16)))
    (place / "out" / "lift").mkdir(parents=True)
    copy(place / "scene.safetensors", place / "out" / "lift" / "robot.safetensors")
    captures.write_views(photos, scenes[0], captures.cameras_around(scenes[0], 8), 32)  # some are held out
    for name in ("man", "woman", "duck", "cow"):
        trimesh.Trimesh(*solids.cube()).export(place / f"{name}.obj")
    for name in ("desk.png", "duck.png", "mug.png", "depth.png", "edges.png", "thing.png", "a.png", "b.png"):
        copy(
            place / ("other.png" if name == "b.png" else "mask.png" if name == "thing.png" else "photo.png"),
            place / name,
        )
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        shown[0].save(place / name)
    (place / "edits.csv").write_text("picture,from,to\nphoto.png,a red cube,a blue cube\n")
    for thing in ("mug", "ball"):
        (masks / thing).mkdir()
        copy(place / "mask.png", masks / thing / "desk.png")
    for name in ("examples", "marked", "more", "captioned", "more-photos", "ducks", "robots", "more-robots", "faces"):
        copytree(labelled, place / name)
    for i in range(1, 7):  # of which some are kept to be painted
        copy(labelled / "1.png", place / "faces" / f"{i}.png")
        (place / "faces" / f"{i}.txt").write_text("a {red cube} on grass")
    copytree(frames, place / "shots")
    for name in ("clip.mp4", "depth.mp4"):
        video.write([shown[0]] * 4, place / name, Fraction(8))
    return place


def expanded(args: list[str]) -> list[str]:
    """With the files that a shell would find."""
    return [one for arg in args for one in (sorted(glob(arg)) if "*" in arg else []) or [arg]]


def surroundings(place: Path) -> None:
    """Fill a reader's folder."""
    copytree(_files(), place, dirs_exist_ok=True)
    (place / "docs").symlink_to(ROOT / "docs")


@cache
def tiny_weights() -> Path:
    """A folder like that of the weights that ship, of networks with the same layers, narrow and random."""
    import diffusers
    from transformers import CLIPConfig, CLIPModel

    from sfumato.stilllife.oracle import Oracle
    from sfumato.stilllife.train.ship import plain

    torch.manual_seed(0)
    place, own = Path(KEPT.name) / "weights", weights.folder()
    made, width = {}, TINY["clip"]["hidden_size"]
    for name, kind in {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "depth": "ControlNetModel"}.items():
        config = weights.read(own / f"{name}.safetensors")[0] | TINY[name]
        config |= {} if name == "vae" else {**TINY["unet"], "cross_attention_dim": width}
        made[name] = getattr(diffusers, kind).from_config(config)
        families.randomised(made[name])
    config = weights.read(own / "clip.safetensors")[0]
    halves = {f"{half}_config": {**config[f"{half}_config"], **TINY["clip"]} for half in ("text", "vision")}
    made["clip"] = CLIPModel(CLIPConfig(**halves, projection_dim=16))
    place.mkdir()
    for name, network in made.items():
        config = network.config.to_diff_dict() if name == "clip" else plain(network.config)
        weights.save(network.state_dict(), config, place / f"{name}.safetensors")
    first = made["unet"].conv_in.weight
    changes = {"conv_in.weight": torch.cat([first, first], 1)}
    weights.save(changes, {"in_channels": 8}, place / "instruct.safetensors")
    Oracle((8, 8, 8, 8), (1, 1, 1, 1)).save(place / "oracle.safetensors")
    tokenizer.write_tokenizer(place / weights.TOKENIZER)
    weights.write_manifest(place)
    return place


@cache
def _other(name: str) -> Any:
    """A tiny model in the place of one that is not here."""
    torch.manual_seed(0)
    pipe = OTHERS.get(name, families.stable_diffusion)()
    families.randomised(*pipe.components.values())
    pipe.save_pretrained(place := Path(KEPT.name) / "others" / name)
    return load(place)


def stand_ins(monkeypatch: Any) -> None:
    """Tiny random models in the place of those that are not here, such as the hub's and a reader's own."""

    def found(name: Any = "stilllife", **options: Any) -> Any:
        signature(load).bind(name, **options)
        if not isinstance(name, str | Path) or name in weights.MODELS:
            return load(name, **options)
        return _other("moving" if options.get("motion") else str(name))

    monkeypatch.setattr(loading, "load", found)


@cache
def _built_in(name: str) -> Any:
    return load(name)


def quick(monkeypatch: Any) -> None:
    """Narrow random networks in the place of the built-in ones, and few steps in the place of many: names, arguments,
    shapes and files are as they would be, pictures are not."""
    levels, checked = Schedule.levels, Settings.__post_init__

    def fewer(steps: Any) -> Any:
        return FEWEST if isinstance(steps, int) and steps > FEW else steps

    def few(self: Any) -> None:
        checked(self)
        for name in {"steps", "epochs", "members", "class_pictures"} & vars(self).keys():
            value = getattr(self, name)
            object.__setattr__(self, name, min(value, FEW) if isinstance(self, DiffEdit) else fewer(value))

    def found(name: Any = "stilllife", **options: Any) -> Any:
        return stand_in(name, **options) if options or name not in weights.MODELS else _built_in(name)

    stand_in, place = loading.load, tiny_weights()
    monkeypatch.setattr(loading, "load", found)
    monkeypatch.setattr(weights, "folder", lambda: place)
    monkeypatch.setattr(Settings, "__post_init__", few)
    monkeypatch.setattr(Schedule, "levels", lambda self, steps, *more: levels(self, fewer(steps), *more))
    monkeypatch.setattr(Run, "over", property(lambda self: self.fraction >= 1 or self.step >= FEWEST))
