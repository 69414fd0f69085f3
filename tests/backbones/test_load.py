"""``load``: names, options, and what is said of models that are not there or not right."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from families import ldm, write
from PIL import Image
from safetensors.torch import load_file, save_file

from sfumato import cli
from sfumato.backbones import hub
from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.rows import single
from sfumato.errors import SfumatoError
from sfumato.stilllife.tokenizer import write_tokenizer

PROMPT = "a red cube on grass"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write("sd", tmp_path_factory.mktemp("models"))


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    """A folder of its own, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """An empty cache of the hub; called with an id and a folder, it holds the folder under that id."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def put(repo: str, folder: Path) -> None:
        place, commit = tmp_path / f"models--{repo.replace('/', '--')}", "0" * 40
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(commit)
        (place / "snapshots").mkdir()
        (place / "snapshots" / commit).symlink_to(folder)

    return put


@pytest.fixture
def online(monkeypatch):
    """The hub is asked; called with an error or a folder, that is its answer, and the ids asked for are listed."""
    import huggingface_hub
    from diffusers import DiffusionPipeline
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked: list[str] = []

    def answer(given: dict[str, Any]) -> list[str]:
        def info(self, repo, **_: Any) -> None:
            asked.append(repo)
            if isinstance(given[repo], Exception):
                raise given[repo]

        def download(repo, local_files_only, use_safetensors, **_: Any):
            assert use_safetensors is True
            if local_files_only:
                raise FileNotFoundError(repo)
            return str(given[repo])

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
        monkeypatch.setattr(DiffusionPipeline, "download", download)
        return asked

    return answer


def refused(kind: str) -> Exception:
    """An error of the hub's client, without the answer that its constructor wants."""
    from huggingface_hub import errors

    error = getattr(errors, kind)
    return error.__new__(error)


def predict(model, handler=None):
    x, cond = model.latents([0, 1], 64, 64), model.embed([PROMPT, "a duck"])
    if handler is None:
        return model.predict(x, 401, cond)
    with model.tap(dict.fromkeys(model.sites, handler), single(2), (8, 8)) as tap:
        out = model.predict(x, 401, cond)
        tap.check(model.network)
    return out


def test_every_alias_names_ids_and_none_is_both_there_and_gone():
    known = hub.aliases()
    there = [i for a in known.values() for i in a["ids"]]
    gone = [i for a in known.values() for i in a.get("gone", ())]
    assert len(set(there + gone)) == len(there + gone) and all(hub._ID.fullmatch(i) for i in there + gone)
    assert all(a["ids"] and set(a) <= {"ids", "gone"} for a in known.values())
    assert not any("/" in alias for alias in known)


def test_a_model_in_the_cache_is_loaded_offline_by_id_and_by_alias(folder, cached):
    cached("somebody/tiny", folder)
    cached("runwayml/stable-diffusion-v1-5", folder)  # of before it went
    plain = predict(load(str(folder), device="cpu"))
    for name in ("somebody/tiny", "runwayml/stable-diffusion-v1-5", "sd-1.5"):
        model = load(name, device="cpu", offline=True)
        assert model.name == name and torch.equal(predict(model), plain)


@pytest.mark.parametrize("name", ["sd-1.5", "no/such"])
def test_offline_nobody_is_connected_to(folder, cached, monkeypatch, tmp_path, name):
    from huggingface_hub import constants
    from huggingface_hub.utils import _detect_agent

    calls = []
    monkeypatch.setattr(_detect_agent, "_registry", None, raising=False)  # what the client has looked up, it keeps
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "none.json"), raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: calls.append(args) or [])
    monkeypatch.setattr(socket.socket, "connect", lambda self, where: calls.append(where))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    if name != "no/such":
        cached("runwayml/stable-diffusion-v1-5", folder)
    with suppress(SfumatoError):
        load(name, device="cpu", offline=True)
    assert not calls and not constants.HF_HUB_OFFLINE
    load("stilllife", device="cpu", offline=True)
    assert not calls


def test_a_missing_model_says_where_it_was_looked_for(cached, tmp_path):
    with pytest.raises(SfumatoError, match=r"'no/such': there is no such folder; nothing is downloaded offline") as e:
        load("no/such", device="cpu", offline=True)
    assert f"the local cache ({tmp_path}) does not have it" in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(SfumatoError, match=r"sd-1\.5 cannot be loaded; nothing is downloaded offline"):
        load("sd-1.5", device="cpu")  # HF_HUB_OFFLINE is set
    with pytest.raises(SfumatoError, match=r"unknown model 'sd15'; known: stilllife, .*sd-1\.5.*owner/name"):
        load("sd15", device="cpu")


def test_a_repository_that_is_gone_has_its_mirrors_named(cached, online):
    asked = online({})
    with pytest.raises(SfumatoError, match=r"no longer on the hub; the same weights are at: stable-diffusion-v1-5/"):
        load("runwayml/stable-diffusion-v1-5", device="cpu")
    with pytest.raises(SfumatoError, match="sd2-community/stable-diffusion-2-depth"):
        load("stabilityai/stable-diffusion-2-depth", device="cpu")
    assert not asked


def test_the_next_mirror_is_taken_when_the_first_is_missing(folder, cached, online):
    first, second = hub.aliases()["sd-1.5"]["ids"]
    asked = online({first: refused("RepositoryNotFoundError"), second: folder})
    assert load("sd-1.5", device="cpu").name == "sd-1.5" and asked == [first, second]
    with pytest.raises(SfumatoError, match=f"the hub has no {first}.*the same weights are at: {second}"):
        load(first, device="cpu")


def test_a_licence_to_accept_is_named(cached, online):
    repo = hub.aliases()["flux-dev"]["ids"][0]
    online({repo: refused("GatedRepoError")})
    with pytest.raises(SfumatoError, match=rf"{repo} wants its licence accepted at https://huggingface.co/{repo}"):
        load("flux-dev", device="cpu")


def test_an_unreachable_hub_is_one_clear_line_and_asked_once(cached, monkeypatch, capfd):
    from huggingface_hub import HfApi, constants

    ask, waits = HfApi.model_info, []

    def once(self, repo, timeout=None):
        waits.append(timeout)
        return ask(self, repo, timeout=timeout)

    monkeypatch.setattr(HfApi, "model_info", once)
    monkeypatch.setattr(time, "sleep", lambda seconds: waits.append(seconds))  # before it would be tried again
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(
        SfumatoError, match=r"'somebody/model': .*; somebody/model cannot be downloaded \(.+\); the"
    ) as e:
        load("somebody/model", device="cpu")
    assert waits == [10.0] and "\n" not in str(e.value)
    assert capfd.readouterr() == ("", "")


def test_single_files_parts_and_other_folders_are_not_models(copied, tmp_path):
    single_file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    for name, words in (
        (single_file, "holds no model: it is one part of a diffusers model; give the folder above it"),
        (copied / "unet", "holds a UNet2DConditionModel, one part of a model"),
        (tmp_path, "has no model_index.json"),
    ):
        with pytest.raises(SfumatoError, match=words):
            load(str(name), device="cpu")
    (copied / "unet" / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel"}))
    with pytest.raises(SfumatoError, match=r"holds a ControlNet, which steers a model.*--controlnet F.*controls="):
        load(str(copied / "unet"), device="cpu")
    (copied / "model_index.json").write_text("{")
    with pytest.raises(SfumatoError, match=r"model_index\.json cannot be read"):
        load(str(copied), device="cpu")
    (copied / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(SfumatoError, match="names the pipeline 'NoSuchPipeline', which diffusers"):
        load(str(copied), device="cpu")


def test_pickled_weights_are_not_read(copied):
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(SfumatoError, match=r"unet has only pickled weights, which are not read"):
        load(str(copied), device="cpu")


@pytest.mark.parametrize("keep", [0, 4, 1000, -1000])
@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_truncated_weights_are_said_to_be(copied, part, keep):
    file = copied / f"{part}.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SfumatoError, match=rf"{part}.safetensors is no safetensors file, or cut off: ") as e:
        load(str(copied), device="cpu")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_that_lacks_weights_is_not_drawn_at_random(folder, copied, part):
    """transformers draws what is missing, and warns; diffusers fails far from it."""
    (file,) = (copied / part).glob("*.safetensors")
    state = load_file(file)
    key = max(state)
    save_file({name: values for name, values in state.items() if name != key}, file, {"format": "pt"})
    words = rf"model/{part} lacks 1 of its weights \(first: {key.removeprefix('text_model.')}\)"
    with pytest.raises(SfumatoError, match=words) as e:
        load(str(copied), device="cpu")
    assert "\n" not in str(e.value)
    with pytest.raises(SfumatoError, match=words):
        load(str(folder), device="cpu", **{part: str(copied)})  # as a part beside another model
    load(str(copied), device="cpu", **{part: str(folder)})  # and in its place another


@pytest.mark.parametrize("left", [[], ["merges.txt"], ["vocab.json"]])
def test_a_tokenizer_without_its_words_is_no_other_one(folder, copied, left):
    write_tokenizer(copied / "tokenizer")  # in two files
    (copied / "tokenizer" / "tokenizer.json").unlink()
    assert load(str(copied), device="cpu").words(PROMPT) == load(str(folder), device="cpu").words(PROMPT)
    for name in {"vocab.json", "merges.txt"} - {*left}:
        (copied / "tokenizer" / name).unlink()
    words = r"model/tokenizer lacks the words of its CLIPTokenizer: tokenizer.json, or vocab.json and merges.txt"
    for options in ({}, {"tokenizer": str(copied)}):
        with pytest.raises(SfumatoError, match=words):
            load(str(folder if options else copied), device="cpu", **options)


def test_a_part_of_every_family_is_whole_as_it_is_saved(tmp_path):
    """Weights that two layers share are in a file once."""
    for name in ("sdxl", "deepfloyd", "pixart", "sd3", "flux"):
        load(str(write(name, tmp_path)), device="cpu")


def test_a_folder_of_checkpoint_files_names_them(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").touch()
    with pytest.raises(SfumatoError, match=r"but .safetensors files \(a.*, b.*\); give one of them"):
        load(tmp_path, device="cpu")


def test_a_missing_part_is_said(copied):
    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(SfumatoError, match=r"does not load .*diffusion_pytorch_model\.safetensors"):
        load(str(copied), device="cpu")


def test_a_variant_is_one_of_several_sets_of_weights(folder, copied, here):
    plain = predict(load(str(folder), device="cpu"))
    for file in copied.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert torch.equal(predict(load(str(copied), device="cpu", variant="fp16")), plain)
    with pytest.raises(SfumatoError, match="has only the variants fp16; give one as variant"):
        load(str(copied), device="cpu")
    with pytest.raises(SfumatoError, match="variant=other"):
        load(str(folder), device="cpu", variant="other")
    with pytest.raises(SfumatoError, match="stilllife has no variant 'fp16'"):
        load("stilllife", device="cpu", variant="fp16")


def test_dtypes_are_words_too(folder, here):
    for name in (str(folder), "stilllife"):
        for dtype in ("bfloat16", torch.bfloat16):
            model = load(name, device="cpu", dtype=dtype)
            assert {model.network.dtype, model.vae.dtype, model.text_encoder.dtype} == {torch.bfloat16}
    with pytest.raises(SfumatoError, match="unknown dtype 'int8'; known: float32, float16, bfloat16"):
        load(str(folder), device="cpu", dtype="int8")
    for dtype in (torch.int8, torch.float8_e4m3fn):
        with pytest.raises(SfumatoError, match=f"nothing computes in {dtype}; load in bfloat16, and store weights in"):
            load(str(folder), device="cpu", dtype=dtype)


def test_offload_wants_a_gpu(folder):
    with pytest.raises(SfumatoError, match=r"offload='model' keeps weights .* runs on the cpu; leave offload out"):
        load(str(folder), device="cpu", offload="model")
    with pytest.raises(SfumatoError, match="unknown offload 'disk'; known: model, sequential"):
        load(str(folder), device="cpu", offload="disk")  # pyright: ignore[reportArgumentType]


def test_weights_that_wait_elsewhere_change_nothing(folder):
    """What sequential offload does, on a machine without a GPU: no parameter is where it computes."""
    import accelerate

    model = load(str(folder), device="cpu")
    plain, painted = predict(model), denoise(model, PROMPT, steps=2, size=64)
    images = painted.images
    for network in (model.network, model.vae, model.text_encoder):
        accelerate.cpu_offload(network, torch.device("cpu"))
    model._known.clear()
    assert all(p.is_meta for p in model.network.parameters())
    assert model.device.type == "cpu" and torch.equal(predict(model), plain)
    assert torch.equal(predict(model, lambda call: None), plain)
    again = denoise(model, PROMPT, steps=2, size=64)
    assert torch.equal(again.latents, painted.latents) and torch.equal(again.images, images)


def test_vaes_tile_and_slice_when_asked(folder, tmp_path):
    options: tuple[dict[str, Any], ...] = ({}, {"vae_tiling": True}, {"vae_slicing": True})
    plain, tiled, sliced = (load(str(folder), device="cpu", **given) for given in options)
    assert [m.vae.use_tiling for m in (plain, tiled, sliced)] == [False, True, False]
    assert [m.vae.use_slicing for m in (plain, tiled, sliced)] == [False, False, True]
    latents = plain.latents([0, 1], 64, 64)
    assert tiled.decode(latents).shape == plain.decode(latents).shape  # tiles differ: each is normalised by itself
    torch.testing.assert_close(sliced.decode(latents), plain.decode(latents), atol=1e-5, rtol=1e-5)
    with pytest.raises(SfumatoError, match="without a VAE"):
        load(str(write("deepfloyd", tmp_path)), device="cpu", vae_slicing=True)
    vqvae = ldm(latents=4).vqvae
    for option in ("vae_tiling", "vae_slicing"):
        with pytest.raises(SfumatoError, match="neither tiles nor slices a VQModel; leave vae_tiling and vae_slicing"):
            load(str(folder), vae=vqvae, device="cpu", **{option: True})


def test_a_compiled_network_is_asked_for_and_not_tapped(folder, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, *args, **options: function)
    plain, model = load(str(folder), device="cpu"), load(str(folder), device="cpu", compile=True)
    assert torch.equal(predict(model), predict(plain)) and torch.equal(
        predict(plain, lambda call: None), predict(plain)
    )
    with pytest.raises(SfumatoError, match="compile=False"):
        predict(model, lambda call: None)


def test_commands_load_as_they_are_told(folder, copied, cached, capsys):
    def run(*args: object):
        code = cli.main([str(a) for a in args])
        return code, *capsys.readouterr()

    for file in copied.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    code, out, _ = run("show", "sites", copied, "--variant", "fp16", "--dtype", "bfloat16", "--json")
    assert code == 0 and len(json.loads(out)) == len(load(str(folder), device="cpu").sites)
    cached("somebody/tiny", folder)
    code, out, err = run("show", "plan", "--model", "somebody/tiny", "--offline", "sdedit")
    assert code == 0 and "nothing is tapped" in out, err
    code, out, err = run("show", "plan", "--model", "sdxl", "--offline", "sdedit")
    assert code == 2 and not out and len(err.splitlines()) == 1 and "nothing is downloaded offline" in err
    options = ["--model", folder, "--device", "cpu", "--offload", "sequential"]
    picture = copied / "picture.png"
    Image.new("RGB", (16, 16)).save(picture)
    for command in (["invert", picture, *options], ["edit", picture, "--from", "a", "--to", "b", *options, "sdedit"]):
        code, out, err = run(*command)
        assert code == 2 and "leave offload out" in err, (command, err)


CONFIGS = ("model_index.json", "unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")


@pytest.mark.parametrize("file", CONFIGS)
def test_a_config_that_is_none_is_one_line_and_nobody_is_connected_to(copied, file, monkeypatch):
    """diffusers takes a config that is a text for an id of the hub, and asks there."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    for text in ("[1]", '"x"', "null", "", "[" * 10**5, '{"a": NaN}'):
        (copied / file).write_text(text)
        with pytest.raises(SfumatoError, match=rf"{file} (cannot be read as JSON|has numbers that are none)") as e:
            load(str(copied), device="cpu")
        assert "\n" not in str(e.value)


def _changed(file: str, **values: Any) -> Any:
    def change(place: Path) -> None:
        config = json.loads((place / file).read_text())
        (place / file).write_text(json.dumps(config | values))

    return change


def _weights(part: str, change: Any) -> Any:
    def changed(place: Path) -> None:
        (file,) = (place / part).glob("*.safetensors")
        save_file({key: change(key, value) for key, value in load_file(file).items()}, file, {"format": "pt"})

    return changed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_changed("model_index.json", unet=["diffusers"]), r"the unet \['diffusers'\]; a part is a library and a cl"),
        (_changed("model_index.json", _class_name=["os", "system"]), r"names the pipeline \['os', 'system'\], which"),
        (lambda place: shutil.rmtree(place / "vae"), r"lacks the folder of its vae, which its model_index"),
        (_changed("unet/config.json", layers_per_block=10**30), "does not load as a diffusers pipeline"),
        (_changed("scheduler/scheduler_config.json", num_train_timesteps=0), "does not load as a diffusers pipeline"),
        (_changed("unet/config.json", sample_size=-1), "has the sample_size -1, which is no size"),
        (_changed("vae/config.json", scaling_factor=0), "has the scaling_factor 0; latents are multiplied"),
        (_weights("text_encoder", lambda k, v: v[:3].clone() if "fc1.bias" in k else v), r"fc1.bias is \(3,\)"),
        (_weights("vae", lambda _, v: v.to(torch.int8)), r"is quantised: \S+ holds whole numbers"),
    ],
)  # fmt: skip
def test_a_broken_folder_is_one_line(copied, change, says, capfd):
    change(copied)
    with pytest.raises(SfumatoError, match=says) as e:
        load(str(copied), device="cpu")
    assert "\n" not in str(e.value) and "REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_not_finite_are_named_and_nothing_is_painted(copied, part, tmp_path, capsys):
    lost = "layer_norm1.weight" if part == "text_encoder" else "conv_out.weight"
    _weights(part, lambda key, v: torch.full_like(v, float("nan")) if key.endswith(lost) else v)(copied)
    words = ["generate", PROMPT, "--model", str(copied), "--device", "cpu", "--steps", "1", "--n", "1", "--size", "64"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    assert re.search(r"the weights of its \w+ are not finite \(\S+\): the file is damaged", capsys.readouterr().err)
    assert not [*(tmp_path / "out").rglob("*.png")]
