"""Teaches the text half of the tiny CLIP, before it sees an image, to keep in mind who has which colour.

Captions alone: a noun's token must tell what is said of its thing, the embedding of the text everything. See ``facts``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from sfumato.stilllife import networks
from sfumato.stilllife.captions import caption
from sfumato.stilllife.scene import sample_scene
from sfumato.stilllife.train import Options, loop
from sfumato.stilllife.train.facts import Facts, Nouns, facts, nouns
from sfumato.stilllife.train.precision import autocast

MIDDLE = 2  # the layer whose nouns must tell already, so that later layers can gather what they tell


def run(args: Options) -> None:
    """Train the text encoder of a CLIP (its other half stays as it is) and write the whole to ``OUT/final``."""
    from transformers import CLIPModel

    device = loop.start(args)
    out, batch = args.place("words"), args.batch or 256
    model: Any = CLIPModel.from_pretrained(args.init) if args.init else networks.clip()
    model.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")  # the faster one, see ``clip``
    model.requires_grad_(False).to(device).train()
    model.text_model.requires_grad_(True)
    model.text_projection.requires_grad_(True)
    readers: Any = nn.ModuleList([Nouns(networks.TEXT_WIDTH), Nouns(networks.TEXT_WIDTH)])
    modules = {"clip": model, "nouns": readers, "facts": Facts(model.config.projection_dim)}
    for module in modules.values():
        module.to(device)
    tokenizer = networks.tokenizer()

    def step(i: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng((args.seed, i, 6))
        words = [caption(sample_scene(rng), rng) for _ in range(batch)]
        tokens = tokenizer(words, padding=True, return_tensors="pt").to(device)
        wanted, named = facts(words).to(device), nouns(words, tokens["input_ids"]).to(device)
        with autocast(device):
            read = model.text_model(**tokens, output_hidden_states=True)
            embedding = model.text_projection(read.pooler_output)
        early = readers[0].loss(read.hidden_states[MIDDLE], named)
        late = readers[1].loss(read.last_hidden_state, named)
        whole = modules["facts"].loss(embedding, wanted)
        return early + late + whole, {"early": early, "late": late, "whole": whole}

    ema: Any = loop.fit("words", modules, step, args, rate=1e-3, batch=batch, ema=0.99, weight_decay=0.05)["clip"]
    ema.save_pretrained(out / "final")
    print(f"words: written to {out / 'final'}, {loop.report('words', args, {'text': ema.text_model}, batch, {})}")
