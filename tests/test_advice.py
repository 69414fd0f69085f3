"""Whatever an error advises is done here, literally, and helps: of backbones, the core and the tasks.

What single files, parts and LoRAs advise is followed where they are tested (``backbones``).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import families
import pytest
import torch
from alone import Alone
from diffusers.models.attention_processor import AttnProcessor2_0
from families import FAMILIES, painted, pipeline, seeded, write
from PIL import Image
from safetensors.torch import load_file

from sfumato.backbones.controlnets import ControlNet
from sfumato.backbones.load import load
from sfumato.core.conditions import Cond
from sfumato.core.denoising import denoise
from sfumato.core.guidance import Distilled, against, cfg
from sfumato.core.method import Method, Phases, Requires, Run
from sfumato.core.rows import single
from sfumato.core.schedule import Schedule
from sfumato.core.solvers import DPMSolver
from sfumato.core.steppers import DDIM
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.media.images import read_image
from sfumato.methods.control import UniversalGuidance
from sfumato.methods.edit import PromptToPrompt

PROMPT = "a red cube on grass"
REPEATING = UniversalGuidance(lambda x0: x0.square().sum(), 0.01, "x0", repeats=2, network=False)
BOTH = {"source": PROMPT, "target": "a blue cube on grass"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Any:
    place = tmp_path_factory.mktemp("models")
    made = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = write(name, place)
        return made[name]

    return get


@dataclass(frozen=True)
class Demanding(Method):
    """A method that asks of a run what any may ask."""

    requires: ClassVar = Requires(uncond=True, windows=False)

    def start(self, run: Run) -> Phases:
        return Phases()


@dataclass
class Case:
    """What went wrong, what its error says, and what it says to do."""

    fails: Callable[[Any], Any]
    words: str
    helps: Callable[[Any], Any]


def tapped(model: Any, times: int = 1) -> torch.Tensor:
    side = families.side(model)
    n, x, out = side // model.factor, model.latents([0], side, side), torch.empty(0)
    with model.tap(dict.fromkeys(model.sites, lambda call: None), single(1), (n, n)) as tap:
        for _ in range(times):
            out = model.predict(x, 401.0, model.embed([PROMPT]))
            tap.check(model.network)
    return out


class Own:
    """A processor that computes attention by itself."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *_: Any, **__: Any):
        both = ("added_kv_proj_dim", "add_k_proj")
        joint = encoder_hidden_states is not None and any(getattr(attn, name, None) is not None for name in both)
        return (hidden_states, encoder_hidden_states) if joint else hidden_states


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_that_was_out_of_reach_is_reached_as_it_says(folders, name):
    from diffusers.models import attention_processor
    from diffusers.models.transformers import transformer_flux

    model: Any = load(str(folders(name)), device="cpu")
    plain = tapped(model)
    model.network.set_attn_processor(Own())
    with pytest.raises(SfumatoError, match=r"never reached .*processor Own") as e:
        tapped(model)
    said = re.search(r"call set_attn_processor\((\w+)\(\)\) of its network", str(e.value))
    assert said is not None
    kind = getattr(attention_processor, said[1], None) or getattr(transformer_flux, said[1])
    model.network.set_attn_processor(kind())
    assert torch.equal(tapped(model), plain)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_sliced_and_old_attention_is_reached_as_it_says(folders, name):
    model: Any = load(str(folders(name)), device="cpu")
    plain, unet, pipe = tapped(model), model.network, model.pipe
    pipe.enable_attention_slicing(1)
    with pytest.raises(SfumatoError, match=r"SlicedAttnProcessor.*or pipe.disable_attention_slicing\(\)"):
        tapped(model)
    pipe.disable_attention_slicing()
    assert torch.equal(tapped(model), plain)
    unet.set_default_attn_processor()
    with pytest.raises(SfumatoError, match=r"set_attn_processor\(AttnProcessor2_0\(\)\)"):
        tapped(model)
    unet.set_attn_processor(AttnProcessor2_0())
    assert torch.equal(tapped(model), plain)


def test_a_cache_of_blocks_is_switched_off_as_it_says(folders):
    model: Any = load(str(folders("flux")), device="cpu")
    plain = tapped(model)
    model.network.enable_cache(diffusers.FirstBlockCacheConfig(threshold=1e9))
    words = r"did not run once .*call disable_cache\(\) of the network"
    with model.network.cache_context("it"), pytest.raises(SfumatoError, match=words):
        tapped(model, times=2)
    model.network.disable_cache()
    assert torch.equal(tapped(model), plain)


# --- of a model and a run ---------------------------------------------------------------------------


def sd(folders) -> Any:
    return load(str(folders("sd")), device="cpu")


@cache
def one(folders) -> Any:
    """The same, loaded once, for what leaves it as it is."""
    return sd(folders)


def run(model: Any, prompts: Any = PROMPT, **options: Any) -> Any:
    return denoise(model, prompts, **{"steps": 2, "size": 64, "guide": 3.0} | options)


def odd_size(folders) -> None:
    one(folders).latents([0], 60, 64)


def fitted(folders) -> None:
    model, place = one(folders), folders("sd") / "odd.png"
    Image.new("RGB", (61, 67)).save(place)
    model.check_size(*read_image(place, model).shape[-2:])


def conds(folders, both: bool) -> Cond:
    cond = one(folders).embed([PROMPT])
    image = torch.zeros(1, 4, 8, 8)
    return Cond.cat([replace(cond, image=image), replace(cond, image=image if both else None)])


def in_hand(folders, **options: Any) -> Any:
    return load(pipeline(folders("sd")), **options)


def another_unet(folders, loaded: bool) -> Any:
    model, other = sd(folders), pipeline(folders("sdxl"))
    model.pipe.unet = other.unet
    for part in ("text_encoder_2", "tokenizer_2", "tokenizer"):
        setattr(model.pipe, part, getattr(other, part))
    parts = {k: v for k, v in model.pipe.components.items() if k in other.components}
    sdxl = diffusers.StableDiffusionXLPipeline(**{**other.components, **parts}, add_watermarker=False)
    return painted(load(sdxl)) if loaded else painted(model)


def with_ip_adapter(folders, unload: bool) -> Any:
    model: Any = load(str(folders("flux")), device="cpu")
    model.network.encoder_hid_proj = torch.nn.Identity()  # where diffusers puts the projection of images
    model.pipe.image_encoder = model.pipe.feature_extractor = None
    if unload:
        model.pipe.unload_ip_adapter()
    return painted(model)


def with_image_prompt(folders, given: bool) -> Any:
    model: Any = sd(folders)
    model.network._load_ip_adapter_weights([families.ip_adapter(model.network, 0)])
    embeds = torch.randn(1, 2, 12, generator=torch.Generator().manual_seed(0))
    return painted(model.given(lambda cond: model.with_image_prompt(cond, embeds)) if given else model)


def controlled(folders, of: str) -> Any:
    model, other = one(folders), load(str(folders(of)), device="cpu")
    network = families.controlnet(of, other.network)
    return run(model, controls=[ControlNet(network, torch.rand(1, 3, 64, 64))])


def pickled(folders, advised: bool) -> Any:
    place = folders("sd").parent / f"pickled-{advised}"
    shutil.copytree(folders("sd"), place)
    for file in place.glob("*/*.safetensors"):
        stem = "pytorch_model" if file.stem == "model" else file.stem
        torch.save(load_file(file), file.with_name(f"{stem}.bin"))
        file.unlink()
    new = place.parent / f"{place.name}-new"
    if advised:
        diffusers.DiffusionPipeline.from_pretrained(place).save_pretrained(new)
    return load(str(new if advised else place), device="cpu")


def variant(folders, given: str | None) -> Any:
    place = folders("sd").parent / f"variant-{given}"
    shutil.copytree(folders("sd"), place)
    for file in place.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    return load(str(place), device="cpu", variant=given)


def weighed(folders, prompt: str, own: bool) -> Any:
    model = sd(folders)
    model.network.set_attn_processor(Own() if own else AttnProcessor2_0())
    return painted(model, prompt)


def inpainted(folders, given: bool) -> Any:
    pipe = pipeline(folders("sd"))
    pipe.unet = seeded(lambda: families.unet(in_channels=9))
    model: Any = load(pipe)
    image, mask = torch.rand(1, 3, 64, 64), torch.ones(1, 64, 64)
    return run(model.given(lambda cond: model.with_mask(cond, image, mask)) if given else model)


def enlarged(model: Any) -> Any:
    return model.enlarging(model.embed([PROMPT]), torch.rand(1, 3, 4, 4))


def lacking(folders, given: bool) -> Any:
    pipe = pipeline(folders("sd"))
    tokenizer, pipe.tokenizer = pipe.tokenizer, None
    return painted(load(pipe, **({"tokenizer": tokenizer} if given else {})))


def sworn(folders, learned: bool) -> Any:
    model: Any = load(str(folders("sd")), device="cpu", embeddings={"sks": torch.ones(16)} if learned else ())
    if not learned:
        model.pipe.tokenizer.add_tokens(["sks"])
    return painted(model, "a sks cube")


def rescaled(folders, **options: Any) -> Any:
    scheduler = families.ddim(timestep_spacing="trailing", **options)
    return run(load(str(folders("sd")), device="cpu", scheduler=scheduler))


def made_in(folders, mode: Any) -> Any:
    with mode():
        pipe = pipeline(folders("sd"))
    return load(pipe)


CASES: dict[str, Case] = {
    "sides": Case(odd_size, r"multiples of 8 .*read_image\(path, model\) fits a picture", fitted),
    "images of some conditions": Case(
        lambda f: conds(f, False), "give all of them one", lambda f: conds(f, True)
    ),
    "a variant of what is in hand": Case(
        lambda f: in_hand(f, variant="fp16"), "variant says how a model is read.*leave it out", in_hand
    ),
    "a config of what is in hand": Case(
        lambda f: in_hand(f, config="sd-1"), "config says how a model is read.*leave it out", in_hand
    ),
    "a config of a folder": Case(
        lambda f: load(str(f("sd")), device="cpu", config="sd-1"), "config is of a single file .*leave it out", sd
    ),
    "another family's network": Case(
        lambda f: another_unet(f, False), r"what its pipeline now has is SDXL; load\(model.pipe\)",
        lambda f: another_unet(f, True),
    ),
    "a transformer's IP-Adapter": Case(
        lambda f: with_ip_adapter(f, False), r"call pipe.unload_ip_adapter\(\)", lambda f: with_ip_adapter(f, True)
    ),
    "an image prompt": Case(
        lambda f: with_image_prompt(f, False), r"model.given\(lambda cond: model.with_image_prompt\(cond, embeds\)\)",
        lambda f: with_image_prompt(f, True),
    ),
    "another family's ControlNet": Case(
        lambda f: controlled(f, "sdxl"), "take one that was made for this model", lambda f: controlled(f, "sd")
    ),
    "pickled weights": Case(
        lambda f: pickled(f, False), r"from_pretrained\(FOLDER\).save_pretrained\(NEW\)",
        lambda f: pickled(f, True),
    ),
    "a variant": Case(lambda f: variant(f, None), "only the variants fp16; give one", lambda f: variant(f, "fp16")),
    "a scheduler's class": Case(
        lambda f: load(str(f("sd")), device="cpu", scheduler="Nope"), "give a class such as EulerDiscreteScheduler",
        lambda f: load(str(f("sd")), device="cpu", scheduler="EulerDiscreteScheduler"),
    ),
    "offload": Case(
        lambda f: load(str(f("sd")), device="cpu", offload="model"), "runs on the cpu; leave offload out", sd
    ),
    "clip skip": Case(
        lambda f: load(str(f("flux")), device="cpu", clip_skip=1), "leave clip_skip out",
        lambda f: load(str(f("flux")), device="cpu"),
    ),
    "a guidance as input": Case(
        lambda f: run(one(f), guide=Distilled((3.0,))), r"does not read its guidance as an input; give it cfg\(scale\)",
        lambda f: run(one(f), guide=cfg(3.0)),
    ),
    "scales": Case(
        lambda f: Distilled((1.0, 2.0)).embed(load(str(f("flux")), device="cpu"), [PROMPT] * 3), "give one a stream",
        lambda f: Distilled((1.0, 2.0, 3.0)).embed(load(str(f("flux")), device="cpu"), [PROMPT] * 3),
    ),
    "no empty prompt": Case(
        lambda f: run(one(f), BOTH, methods=[Demanding()], guide=1.0),
        r"takes a guidance with an empty prompt; give a scale above 1, or cfg\(scale\)",
        lambda f: [run(one(f), BOTH, methods=[Demanding()], guide=g) for g in (1.5, cfg(3.0))],
    ),
    "a config without a class": Case(
        lambda f: Schedule.read({"beta_start": 0.1}), "does not say of which class it is; give the scheduler",
        lambda f: Schedule.read(one(f).pipe.scheduler),
    ),
    "a stepper that remembers": Case(
        lambda f: run(one(f), methods=[REPEATING], stepper=DPMSolver()),
        "cannot repeat one; take DDIM",
        lambda f: run(one(f), methods=[REPEATING], stepper=DDIM()),
    ),
    "weights where none can be": Case(
        lambda f: weighed(f, "a (red:1.3) cube", own=True), r"cannot be weighed; call set_attn_processor",
        lambda f: weighed(f, "a (red:1.3) cube", own=False),
    ),
    "several images of an edit": Case(
        lambda f: run(one(f), {k: [v] * 2 for k, v in BOTH.items()}, methods=[Alone()]),
        "edits one image a run; give several targets as further streams",
        lambda f: run(one(f), {**BOTH, "other": "a duck"}, methods=[Alone()]),
    ),
    "windows": Case(
        lambda f: run(one(f), BOTH, methods=[Demanding()], size=(64, 256), views=Tiles()),
        "sees whole images, .*leave the views out",
        lambda f: run(one(f), BOTH, methods=[Demanding()], size=(64, 256)),
    ),
    "a compiled network": Case(
        lambda f: tapped(load(str(f("sd")), device="cpu", compile=True)), "load the model with compile=False",
        lambda f: tapped(load(str(f("sd")), device="cpu", compile=False)),
    ),
    "an inpainting checkpoint without a picture": Case(
        lambda f: inpainted(f, False), r"model.given\(lambda cond: model.with_mask\(cond, image, mask\)\)",
        lambda f: inpainted(f, True),
    ),
    "an embedding for a model that learns none": Case(
        lambda f: load(str(f("flux")), device="cpu", embeddings={"it": torch.ones(16)}), "leave embeddings out",
        lambda f: load(str(f("flux")), device="cpu"),
    ),
    "a first stage": Case(
        lambda f: enlarged(load(str(f("deepfloyd")), device="cpu")), r"load a second one \(if-ii-l\)",
        lambda f: enlarged(load(str(f("if-ii")), device="cpu")),
    ),
    "negative prompts at guidance 1": Case(
        lambda f: against(one(f), 1.0, "a duck"), "take another guidance",
        lambda f: against(one(f), 2.0, "a duck"),
    ),
    "two writers": Case(
        lambda f: run(one(f), BOTH, methods=[PromptToPrompt(), PromptToPrompt()]),
        "give them disjoint steps, or use one of them",
        lambda f: run(one(f), BOTH, methods=[PromptToPrompt()]),
    ),
    "a missing part": Case(
        lambda f: lacking(f, False), r"load\(\.\.\., tokenizer=\.\.\.\) gives it one", lambda f: lacking(f, True)
    ),
    "a generator": Case(
        lambda f: run(one(f), seed=torch.Generator()), r"give generator.initial_seed\(\)",
        lambda f: run(one(f), seed=torch.Generator().initial_seed()),
    ),
    "a word without a vector": Case(
        lambda f: sworn(f, False), "load the word's file by embeddings", lambda f: sworn(f, True)
    ),
    "a VAE that is not tiled": Case(
        lambda f: load(str(f("sd")), device="cpu", vae=families.ldm(latents=4).vqvae, vae_tiling=True),
        "leave vae_tiling and vae_slicing out",
        lambda f: load(str(f("sd")), device="cpu"),
    ),
    "a beginning without an image": Case(
        lambda f: rescaled(f, rescale_betas_zero_snr=True), "with one without rescale_betas_zero_snr",
        lambda f: (rescaled(f), rescaled(f, rescale_betas_zero_snr=True, prediction_type="v_prediction")),
    ),
    "a pipeline of inference mode": Case(
        lambda f: made_in(f, torch.inference_mode), "use torch.no_grad", lambda f: made_in(f, torch.no_grad)
    ),
    "a controls' picture": Case(
        lambda f: run(one(f), controls=[ControlNet(None, torch.zeros(1, 3, 8, 8))]), "by a ControlNetModel, .*made for",
        lambda f: controlled(f, "sd"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_what_an_error_advises_helps(folders, what):
    case = CASES[what]
    with pytest.raises(SfumatoError, match=case.words) as e:
        case.fails(folders)
    assert "\n" not in str(e.value)
    case.helps(folders)
