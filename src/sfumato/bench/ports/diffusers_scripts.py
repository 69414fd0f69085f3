"""A step of diffusers' example scripts for personalisation, as they do it: nothing is made before the run.

Pictures are encoded and captions are read in each step. Of textual inversion the optimiser moves the whole vocabulary,
whose other rows are put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.schedule import add_noise
from sfumato.learning.texts import frozen


class Script:
    """What they share: a batch of a part of the pictures each under its caption, the loss, and AdamW."""

    clip: float | None = None
    still = "text_encoder"
    """The part that no gradient is asked of."""

    def __init__(
        self, model: Any, parts: Sequence[tuple[Float[Tensor, "n 3 h w"], str]], learned: list[Any], rate: float
    ):
        self.model, self.parts, self.learned = model, parts, learned
        self.adam = torch.optim.AdamW(learned, lr=rate, weight_decay=1e-2)
        self.rng = torch.Generator().manual_seed(0)

    @torch.enable_grad()
    def step(self, batch: int) -> None:
        """One of ``batch`` pictures of each part."""
        with frozen(getattr(self.model.pipe, self.still)):
            self.loss(batch).backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.learned, self.clip)
        self.adam.step()
        self.adam.zero_grad()

    def loss(self, batch: int) -> Float[Tensor, ""]:
        model = self.model
        which = [torch.randint(len(pictures), (batch,), generator=self.rng) for pictures, _ in self.parts]
        with torch.no_grad():
            x0 = model.encode(torch.cat([own[at] for (own, _), at in zip(self.parts, which, strict=True)]))
        noise = torch.randn(x0.shape, generator=self.rng).to(x0)
        at = model.schedule.at(torch.randint(model.schedule.train_steps, (len(x0),), generator=self.rng))
        captions = [caption for _, caption in self.parts for _ in range(batch)]
        ids = model.pipe.tokenizer(
            captions, padding="max_length", max_length=model.text_tokens, return_tensors="pt"
        ).input_ids
        text = model.pipe.text_encoder(ids.to(x0.device))[0]
        predicted = model.network(
            add_noise(x0, noise, at), at.t.float().to(x0), encoder_hidden_states=text, return_dict=False
        )[0]
        error = (predicted - model.schedule.prediction_of(x0, noise, at)).square()
        return torch.stack([part.mean() for part in error.chunk(len(self.parts))]).sum()


class TextualInversionScript(Script):
    """``train_textual_inversion.py``: a new row of the embedding, which is trained with all others."""

    still = "unet"

    def __init__(self, model: Any, pictures: Float[Tensor, "n 3 h w"], caption: str, row: int, rate: float):
        self.table = model.pipe.text_encoder.get_input_embeddings().weight
        super().__init__(model, [(pictures, caption)], [self.table], rate)
        self.before, self.row = self.table.detach().clone(), row

    def step(self, batch: int) -> None:
        super().step(batch)
        with torch.no_grad():
            others = torch.arange(len(self.table)) != self.row
            self.table[others] = self.before[others]


class DreamBoothScript(Script):
    """``train_dreambooth.py`` with prior preservation: all weights of the network, the kind's pictures beside."""

    clip = 1.0

    def __init__(self, model: Any, parts: Sequence[tuple[Float[Tensor, "n 3 h w"], str]], rate: float):
        super().__init__(model, parts, list(model.network.parameters()), rate)


class LoRAScript(Script):
    """``train_dreambooth_lora.py``: peft's adapters of rank 4 at attention's projections, into the model's network."""

    clip = 1.0

    def __init__(self, model: Any, pictures: Float[Tensor, "n 3 h w"], caption: str, rate: float):
        from peft import LoraConfig

        network = model.network
        targets = ["to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]
        network.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
        super().__init__(model, [(pictures, caption)], [p for p in network.parameters() if p.requires_grad], rate)
