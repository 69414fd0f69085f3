"""What other libraries call an argument, for who comes from there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from inspect import signature, unwrap
from typing import ParamSpec, TypeVar

from sfumato.core.settings import check, kinds_of
from sfumato.errors import SfumatoError

P = ParamSpec("P")
R = TypeVar("R")
_NAMES = {
    "callback_on_step_end": "callback",
    "generator": "seed=7 (or one an image); seed=generator.initial_seed()",
    "guidance_scale": "guide",
    "height": "size=(height, width)",
    "image": "start=invert(model, image, prompt), or latents",
    "latents": "start",
    "negative_prompt": "guide=cfg(scale, negative=...)",
    "num_frames": "frames",
    "num_images_per_prompt": "prompts=[prompt] * n",
    "num_inference_steps": "steps",
    "prompt": "prompts",
    "scheduler": "stepper",
    "sampler": "stepper",
    "width": "size=(height, width)",
}
"""Arguments of diffusers' pipelines, and what says the same here."""
LOADING = {
    "cache_dir": "HF_HOME, of the environment",
    "device_map": "device, or offload",
    "local_files_only": "offline",
    "torch_dtype": "dtype",
}
"""Those of its ``from_pretrained``."""

INVERTING = {
    "generator": "how=Noise(seed=7), of those with noise",
    "guidance_scale": "how=DDIMInversion(scale)",
    "guide": "how=DDIMInversion(scale)",
    "height": "read_image(picture, model), whose size is kept",
    "image": "images",
    "negative_prompt": "how=DDIMInversion(negative=...)",
    "num_inference_steps": "how=Direct(steps=...)",
    "source_prompt": "prompt",
    "steps": "how=Direct(steps=...)",
    "strength": "how=Noise(strength)",
    "width": "read_image(picture, model), whose size is kept",
}
"""Those of its inversions."""
DISTILLING = _NAMES | {
    "generator": "seed=7, image i from seed + i",
    "guidance_scale": "the method's guidance",
    "guide": "the method's guidance",
    "negative_prompt": "the method's negative",
    "num_images_per_prompt": "n",
}
"""Those of score distillation."""
GUIDING = {"guidance_rescale": "rescale", "guidance_scale": "scale", "negative_prompt": "negative"}
"""Those of guidance."""

_PLAIN = {"callback", "controls", "levels", "mark", "memory", "noises", "stepper", "trajectory", "views"}
"""Arguments that are what their annotation says; of others ``f`` says itself what is wrong."""


def hint(f: str, given: Iterable[str], names: Mapping[str, str]) -> None:
    """Raise ``SfumatoError`` for the first that is given and is called otherwise here."""
    for name in given:
        if name in names:
            raise SfumatoError(f"{f} has no {name}; here it is {names[name]}")


def hinting(names: Mapping[str, str] = _NAMES) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Of a function: ``SfumatoError`` for an argument of diffusers' that it calls otherwise, with its name here."""

    def hinted(f: Callable[P, R]) -> Callable[P, R]:
        known = signature(f).parameters

        @wraps(f)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            hint(f.__name__, kwargs.keys() - known.keys(), names)
            for name, value in kwargs.items():
                if name in _PLAIN and name in known:
                    check(name, value, kinds_of(unwrap(f))[name])
            return f(*args, **kwargs)

        return called

    return hinted
