"""Encoder-based domain tuning: what learns, at which rate, and that it begins with what the encoder gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from laws.personalising import asked
from learners import own_models  # noqa: F401

from sfumato.errors import SfumatoError
from sfumato.learning.concepts import Concept
from sfumato.learning.personal import teach
from sfumato.methods.personalise.encoder_tuning import EncoderTuning


def predicted(concept, model):
    known = concept.on(model)
    return known.predict(torch.ones(1, 4, 8, 8), 500.0, known.embed(["a <own>"]))


def test_without_a_rate_it_is_what_the_encoder_gives_and_offsets_have_a_rate_of_their_own(models):
    model, given = models("sd"), asked(models("sd"))
    assert given.encoder is not None
    word = given.encoder.word(model, given.lesson)
    still = teach(EncoderTuning(batch=1, rate=0.0), given, steps=1)
    torch.testing.assert_close(still.rows["clip_l"], word["clip_l"])
    assert all(torch.equal(value, given.encoder.offsets[key]) for key, value in still.changes.items())
    network = teach(EncoderTuning(batch=1, rate=0.0, network=True), given, steps=1)
    assert any(key.endswith("to_q.weight") for key in network.changes)
    torch.testing.assert_close(predicted(network, model), predicted(still, model))
    plain = Concept("<own>", still.rows)
    assert (predicted(plain, model) - predicted(still, model)).abs().max() > 1e-6, "offsets change nothing"
    held = teach(EncoderTuning(batch=1, rate=1e-2, weights_rate=0.0), given, steps=1)
    assert all(torch.equal(value, given.encoder.offsets[key]) for key, value in held.changes.items())
    assert (held.rows["clip_l"] - word["clip_l"]).abs().max() > 1e-5
    assert torch.equal(given.encoder.word(model, given.lesson)["clip_l"], word["clip_l"]), "the encoder has moved"


def test_it_needs_an_encoder_of_this_model(models):
    given = asked(models("sd"))
    with pytest.raises(SfumatoError, match="begins with what an encoder gives; sfumato train-encoder makes one"):
        teach(EncoderTuning(), replace(given, encoder=None), steps=1)
    with pytest.raises(SfumatoError, match="the encoder is of another model"):
        teach(EncoderTuning(), replace(given, encoder=asked(models("sdxl")).encoder), steps=1)
    for bad in ({"batch": 0}, {"rate": -1.0}, {"since": 1.0}):
        with pytest.raises(SfumatoError):
            EncoderTuning(**bad)
