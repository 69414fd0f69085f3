"""Published settings, in the papers' and authors' own numbers: what a method does where nobody says otherwise."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import pytest

from sfumato.core.denoising import plan
from sfumato.methods import index

TABLE: dict[str, dict[str, Any]] = {
    # edits: of 50 steps unless the row says otherwise
    "blended-latents": {"skip": 0.25, "steps": 50},
    "collaborative-editing": {"rate": 2.0, "decay": 0.9, "every": 20, "least": 0.2, "most": 0.5, "steps": 200},
    "cross-image-attention": {  # 100 steps, of which 32 are left out; "32² 10-70" begins 10 behind
        "fine": (10 / 68, 1.0), "coarse": (10 / 68, 1.0), "contrast": 1.67, "guidance": 3.5, "adain": (20 / 68, 1.0),
        "every": 5, "early": 40 / 68,
    },
    "delta-denoising": {"rate": 200 / 4096, "least": 0.05, "most": 0.95, "steps": 200},  # 0.1 x 2000 / latents
    "diff-edit": {"strength": 0.8, "maps": 10, "encode": 0.5, "clamp": 3.0, "threshold": 0.5, "steps": 50},
    "eye-for-an-eye": {"tokens": (10 / 68, 1.0), "adain": (50 / 68, 1.0), "every": 5, "early": 40 / 68},
    "feature-transfer": {"features": 0.8, "attention": 0.5, "weight": 0.5},
    "flow-edit": {"source_scale": 3.5, "target_scale": 13.5, "skip": 1 - 33 / 50, "average": 1, "steps": 50},
    "instruct-pix2pix": {"image_scale": 1.5, "steps": 100},
    "kv-edit": {"source_scale": 1.5, "target_scale": 5.5, "skip": 4 / 28, "steps": 28},
    "ledits": {"scale": 5.0, "threshold": 0.9, "masks": "both", "warmup": 0, "res": 16 / 64, "source_scale": 3.5,
               "skip": 0.15, "steps": 30},
    "masactrl": {"after": 4 / 50, "layer": 10 / 16, "threshold": 0.1, "res": 16 / 64},
    "plug-and-play": {"features": 0.8, "attention": 0.5},
    "prompt-to-prompt": {"cross": 0.8, "self": 0.4, "self_res": 32 / 64, "padding": "position"},
    "sdedit": {"strength": 0.8, "steps": 50},
    "stable-flow": {"vital": tuple(i / 57 for i in (0, 1, 2, 17, 18, 25, 28, 53, 54, 56))},
    # control
    "attend-and-excite": {"scale": 20.0, "until": 25 / 50, "res": 16 / 64, "refine_at": (0.0, 10 / 50, 20 / 50),
                          "refine_to": (0.05, 0.5, 0.8), "refinements": 20, "sigma": 0.5},
    "box-diff": {"share": 0.2, "corners": 1, "scale": 20.0, "until": 25 / 50, "res": 16 / 64, "refinements": 20,
                 "refine_at": (0.0, 10 / 50, 20 / 50), "refine_to": (0.05, 0.5, 0.8)},
    "dense-diffusion": {"cross": 1.0, "self": 0.3, "power": 5.0, "until": 0.3},
    "dynamic-thresholding": {"quantile": 0.995},
    "layout-guidance": {"mode": "backward", "scale": 30.0, "enough": 0.2, "iterations": 5, "until": 10 / 50},
    "linguistic-binding": {"scale": 20.0, "until": 25 / 50, "res": 16 / 64},
    "llm-grounded": {"scale": 5.0, "enough": 5.0, "iterations": (4, 3, 2, 2, 1, 1), "share": 0.2, "inside": 1.0,
                     "outside": 4.0, "transfer": 2.0, "frozen": 0.5},
    "perturbed-attention": {"scale": 3.0, "layers": ("mid",)},
    "region-prompts": {"whole": 0.1, "until": 0.4},
    "rich-text": {"clusters": 9, "threshold": 0.3, "res": 32 / 64, "watched": 10 / 41, "colour_weight": 0.5,
                  "background": 0.0},
    "self-attention-guidance": {"scale": 0.75, "threshold": 1.0, "sigma": 1 / 64, "layers": ("mid",)},
    "self-guidance": {"scale": 1000.0, "early": 3 / 16, "until": 25 / 32, "sharpness": 10.0},
    "smoothed-energy": {"scale": 3.0, "layers": ("mid",)},
    "spatial-temporal": {"epochs": 20, "rate": 0.05, "coefficient": 0.5, "amplitude": 8.0, "radius": 0.2,
                         "weight": 5.0},
    # sets
    "consi-story": {"dropout": 0.5, "queries": (0.9, 0.81837), "inject": 0.8, "t": 261},
    "fate-zero": {"cross": 0.8, "self": 0.8, "threshold": 0.3},
    "free-init": {"iterations": 3, "filter": "butterworth", "order": 4, "space": 0.25, "time": 0.25},
    "free-noise": {"context": 16, "stride": 4},
    "multi-diffusion": {"bootstrap": 0.2},
    "style-aligned": {"adain": "qk"},
    "sync-diffusion": {"weight": 20.0, "decay": 0.95},
    "sync-tweedies": {"case": 2},
    "token-flow": {"every": 8},
    # reading
    "diff-seg": {"threshold": 0.9, "anchors": 16 / 64, "passes": 3, "t": 300},
    "dift": {"t": 261, "blocks": (1,), "ensemble": 8, "refine": "image"},
    "label-efficient": {"t": (50, 150, 250), "blocks": (5, 6, 7, 8, 12), "members": 10, "batch": 64, "rate": 1e-3,
                        "patience": 50, "least": 20},
    "normalised-cut": {"tau": 0.5, "power": 10.0, "t": 50},
    "text-attribution": {"threshold": 0.4, "compete": False, "stage": None},
    "diffews": {"shots": 2, "batch": 4, "steps": 20000, "rate": 1e-5, "decay": 0.01, "clip": 1.0},
    "landmark-regression": {"virtual": 50, "sharpness": 50.0},
    "optimal-transport": {"epsilon": 0.05},
    "picie": {"classes": 27, "dim": 128, "epochs": 10, "batch": 128, "jitter": 0.3, "grey": 0.2, "blur": 0.5,
              "scale": 0.5, "rate": 1e-3},
    "prompt-embeddings": {"steps": 129, "rate": 0.0023755632, "crop": 0.9316549, "found": 20, "restarts": 5, "t": 140},
    "stego": {"classes": 27, "dim": 70, "dropout": 0.1, "batch": 16, "points": 11, "neighbours": 7, "negatives": 5,
              "weights": (0.67, 0.25, 0.63), "shifts": (0.08, 0.02, 0.66), "rate": 5e-4, "probe_rate": 5e-3},
    "unsupervised-keypoints": {"keypoints": 10, "tokens": 500, "steps": 500, "rate": 5e-3, "images": 4, "grid": 128,
                               "sigma": 2 / 128, "candidates": 25, "localisation": 100.0, "equivariance": 1000.0,
                               "degrees": 15.0, "zoom": (0.8, 1.0), "shift": 0.25, "augmentations": 10},
    # personalising: of a rate that is multiplied by the batch, the product
    "break-a-scene": {"steps": 400 + 400, "first": 0.5, "first_rate": 5e-4, "rate": 2e-6, "batch": 1, "clip": 1.0,
                      "attention": 0.01, "prior_weight": 1.0, "class_pictures": 100, "beside": "photo at the beach"},
    "custom-diffusion": {"steps": 500, "rate": 1e-5 * 2 * 2, "batch": 2, "prior_weight": 1.0, "class_pictures": 200},
    "dream-booth": {"steps": 800, "rate": 5e-6, "batch": 1, "prior_weight": 1.0, "class_pictures": 100, "clip": 1.0},
    "encoder-tuning": {"steps": 15, "rate": 5e-6, "batch": 16, "penalty": 0.1},
    "extended-textual-inversion": {"steps": 500, "rate": 5e-3, "batch": 8},
    "lora": {"steps": 500, "rate": 1e-4, "batch": 1, "rank": 4, "alpha": None, "clip": 1.0},
    "neural-inversion": {"steps": 1000, "rate": 1e-3 * 8, "batch": 2 * 4},
    "reversion": {"steps": 3000, "rate": 2.5e-4 * 8, "batch": 2 * 4, "steer": 0.01, "denoise": 1.0, "temperature": 0.07,
                  "positives": 4, "alpha": 0.5},
    "textual-inversion": {"steps": 3000, "rate": 5e-4 * 4, "batch": 4, "decay": 0.01, "vectors": 1},
    "view-inversion": {"steps": 10000, "rate": 1e-3 * 9, "batch": 3 * 3, "hidden": 64, "waves": 32, "dropout": 0.0,
                       "bypass": 5.0, "camera_spread": 0.5},
}  # fmt: skip
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("prompt-to-prompt", "pie-bench"): {"cross": 0.4, "self": 0.6},
    ("prompt-to-prompt", "edit-friendly"): {"self_res": 16 / 64},
    ("attend-and-excite", "authors"): {"beyond": True, "sigma": 0.5 * 2**0.5},
    ("perturbed-attention", "guider"): {"scale": 2.8, "since": 0.01, "until": 0.2},
    ("diff-seg", "coco"): {"threshold": 1.1},
}


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return found == pytest.approx(wanted, abs=1e-12) if isinstance(wanted, float) else found == wanted


@pytest.mark.parametrize("word", TABLE)
def test_defaults_are_published(word):
    found = {f.name: f.default for f in fields(index.find(word).method)}
    assert not {name: found[name] for name, wanted in TABLE[word].items() if not same(found[name], wanted)}


@pytest.mark.parametrize(("word", "preset"), PRESETS)
def test_presets_are_published(word, preset):
    found = index.find(word).presets[preset]
    row = PRESETS[word, preset]
    assert all(same(getattr(found, name), wanted) for name, wanted in row.items())


@pytest.mark.parametrize(
    ("preset", "steps", "cross", "own"),
    [
        (None, 50, 40, 20), (None, 12, 10, 4), (None, 4, 4, 1), ("pie-bench", 50, 20, 30), ("pie-bench", 7, 3, 4),
        ("edit-friendly", 88, 60, 20),  # of 100 steps, of which 12 are left out: int(0.6 x 101) and int(0.2 x 100)
    ],
)  # fmt: skip
def test_words_are_replaced_in_a_part_of_one_step_more_and_self_attention_in_one_of_the_steps(
    models, preset, steps, cross, own
):
    entry = index.find("prompt-to-prompt")
    prompts = {"source": "a red cube", "target": "a blue cube"}
    method = entry.presets[preset] if preset else entry.method()
    planned = plan(models("sd"), prompts, methods=[method], steps=steps, size=64)
    assert {e.pair: e.steps for e in planned.entries} == {"image->text": (0, cross), "image->image": (0, own)}


def test_every_method_with_numbers_of_its_own_has_a_row():
    own = {"classifier-guidance", "given-attention", "structured-diffusion", "universal-guidance"}  # none is published
    own |= {"merge-attend-diffuse", "pix2video", "shared-attention", "spot-diffusion", "text2video-zero", "spatext"}
    own |= {"clip-patches", "few-shot", "fourier-domain-adaptation", "graph-cut", "open-vocabulary", "pacl"}
    own |= {"azimuth-inversion", "disentangled-inversion", "diff3f", "propagation"}  # views: its own test
    for entry in index.METHODS:
        if entry.group != "distill" and entry.word not in own:  # which tests/distill have
            assert entry.word in TABLE, f"{entry.word}: its published settings belong in the table"
    assert not own & {*TABLE}
    assert all(
        f.default is not MISSING for word in TABLE for f in fields(index.find(word).method) if f.name in TABLE[word]
    )
