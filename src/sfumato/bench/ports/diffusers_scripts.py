"""A step of diffusers' example scripts for textual inversion, as they do it: nothing is made before the run.

Pictures are encoded in each step, and the optimiser moves the whole vocabulary, whose other rows are put back.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.schedule import add_noise
from sfumato.learning.texts import frozen


class TextualInversionScript:
    """``train_textual_inversion.py``: a new row of the embedding, which is trained with all others."""

    def __init__(self, model: Any, pictures: Float[Tensor, "n 3 h w"], caption: str, row: int, rate: float):
        self.model, self.pictures, self.caption, self.row = model, pictures, caption, row
        self.table = model.pipe.text_encoder.get_input_embeddings().weight
        self.adam = torch.optim.AdamW([self.table], lr=rate, weight_decay=1e-2)
        self.before = self.table.detach().clone()
        self.rng = torch.Generator().manual_seed(0)

    def step(self, batch: int) -> None:
        model = self.model
        which = torch.randint(len(self.pictures), (batch,), generator=self.rng)
        with torch.no_grad():
            x0 = model.encode(self.pictures[which])
        noise = torch.randn(x0.shape, generator=self.rng)
        at = model.schedule.at(torch.randint(model.schedule.train_steps, (batch,), generator=self.rng))
        ids = model.pipe.tokenizer(
            [self.caption] * batch, padding="max_length", max_length=model.text_tokens, return_tensors="pt"
        ).input_ids
        text = model.pipe.text_encoder(ids)[0]
        with frozen(model.network):
            predicted = model.network(
                add_noise(x0, noise, at), at.t.float(), encoder_hidden_states=text, return_dict=False
            )[0]
            loss = (predicted - model.schedule.prediction_of(x0, noise, at)).square().mean()
            loss.backward()
        self.adam.step()
        self.adam.zero_grad()
        with torch.no_grad():
            others = torch.arange(len(self.table)) != self.row
            self.table[others] = self.before[others]
