from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sfumato.errors import SfumatoError
from sfumato.stilllife.captions import WORDS, caption
from sfumato.stilllife.kinds import KINDS
from sfumato.stilllife.scene import sample_scene
from sfumato.stilllife.tokenizer import special_ids, vocab_size, write_tokenizer

STRANGE = ["😀👩‍👩‍👧", "猫と犬", "naïve café", "﷽", "हिन्दी", "x" * 60, "don't 3d; #~\\ ¡hola!", "\u200b\u202e", "zebra"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def test_each_word_is_one_token_of_its_own(tokenizer: CLIPTokenizer) -> None:
    start, end = special_ids()
    tokens = {}
    for word in WORDS:
        ids = tokenizer(word).input_ids
        assert ids[0] == start and ids[-1] == end
        assert len(ids) == 3, (word, tokenizer.convert_ids_to_tokens(ids))
        tokens[word] = ids[1]
    assert len(set(tokens.values())) == len(WORDS)


def test_captions_have_a_token_per_word_and_fit(tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = caption(sample_scene(rng, kinds=KINDS), rng)
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text.replace(",", " ,").split()) + 2 <= 77


@pytest.mark.parametrize("text", STRANGE)
def test_any_text_falls_back_to_bytes_and_returns(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids and not set(ids) & set(special_ids())

    def squeezed(s: str) -> str:
        return "".join(s.split())

    assert squeezed(tokenizer.decode(ids)) == squeezed(text)


def test_all_bytes_and_word_ending_bytes_are_in_the_vocabulary(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary.values()) == list(range(vocab_size()))
    letters = [t for t in vocabulary if len(t) == 1]
    assert len(letters) == 256
    assert all(f"{letter}</w>" in vocabulary for letter in letters)


def test_pads_and_truncates_to_77(tokenizer: CLIPTokenizer) -> None:
    start, end = special_ids()
    assert tokenizer.model_max_length == 77
    for text in ("", "a red cube on grass", "a red cube " * 200):
        ids = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids
        assert len(ids) == 77 and ids[0] == start and ids[-1] == end
    assert ids.count(end) == 1
    assert tokenizer("", padding="max_length", truncation=True).input_ids == [start] + [end] * 76


def test_case_and_spaces_make_no_difference(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer("A RED  Cube\ton grass").input_ids == tokenizer("a red cube on grass").input_ids


def test_special_ids_are_those_of_the_loaded_tokenizer(tokenizer: CLIPTokenizer) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == special_ids()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == vocab_size() - 1
    assert len(tokenizer) == vocab_size() == 972, "trained weights belong to these ids"


def test_the_text_model_pools_at_the_first_end(tokenizer: CLIPTokenizer) -> None:
    start, end = special_ids()
    config = CLIPTextConfig(
        vocab_size=vocab_size(), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=start, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CLIPTextModel(config).eval()
    text = tokenizer(["a red cube"], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        out = model(text.input_ids)
    assert torch.equal(out.pooler_output[0], out.last_hidden_state[0, 4])


def test_two_calls_write_the_same_bytes_and_leave_nothing_else(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "again")
    files = {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()}
    assert files == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert set(files) == {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"}


def test_survives_being_saved_by_transformers(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for text in ("a red cube on grass", *STRANGE):
        assert again(text).input_ids == tokenizer(text).input_ids


def test_an_unwritable_folder_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SfumatoError, match="cannot write"):
        write_tokenizer(tmp_path / "file" / "folder")
