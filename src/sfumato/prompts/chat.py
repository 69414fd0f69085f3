"""Chat models: one small protocol, a local transformers model and any OpenAI-compatible endpoint that speak it.

A chat is a function from messages to an answer. ``prompts.planner`` asks one where things go; without one it does so by
a grammar, offline.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

from sfumato.errors import SfumatoError
from sfumato.io.files import from_json

KEY = "OPENAI_API_KEY"
_SHOWN = 200  # letters of a server's words that an error repeats


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Chat(Protocol):
    """Answers a conversation. Raises ``SfumatoError`` when there is no answer."""

    def __call__(self, messages: Sequence[Message]) -> str: ...


@dataclass(frozen=True)
class Endpoint:
    """A server that speaks OpenAI's chat completions, such as OpenAI's own, vLLM, llama.cpp and Ollama.

    The key is read from the environment variable ``OPENAI_API_KEY`` at each call; servers of one's own need none.
    Redirects are not followed, so that the key goes nowhere else, and no error repeats it.
    """

    url: str
    """Such as ``http://localhost:8000/v1``, with or without ``/chat/completions``."""
    model: str
    """As the server names it."""
    timeout: float = 60.0
    """Seconds to wait for the server."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise SfumatoError(f"a chat endpoint is an http or https address, got {self.url!r}")

    def __call__(self, messages: Sequence[Message]) -> str:
        body = json.dumps({"model": self.model, "messages": list(messages), "temperature": 0}).encode()
        request = urllib.request.Request(self._address(), body, {"Content-Type": "application/json"})
        if key := os.environ.get(KEY, "").strip():
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.build_opener(_Stay).open(request, timeout=self.timeout) as reply:
                text = reply.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as e:
            text = _reason(e)
            hint = f"; set {KEY}" if e.code == 401 and not key else ""
            raise SfumatoError(f"{self.url} answered {e.code}: {_without(key, text)}{hint}") from None
        except TimeoutError:
            raise SfumatoError(f"{self.url} did not answer within {self.timeout:g} seconds") from None
        except (OSError, http.client.HTTPException, ValueError) as e:
            why = getattr(e, "reason", None) or e
            if isinstance(why, TimeoutError):
                raise SfumatoError(f"{self.url} did not answer within {self.timeout:g} seconds") from None
            raise SfumatoError(f"{self.url} cannot be reached: {_without(key, str(why))}") from None
        try:
            answer = from_json(text, dict, strict=False)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            answer = None
        if not isinstance(answer, str):
            raise SfumatoError(f"{self.url} does not speak OpenAI's chat completions: {_without(key, _short(text))}")
        return answer

    def _address(self) -> str:
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None  # urllib would carry the key along


def _reason(error: urllib.error.HTTPError) -> str:
    """What the server says of its error, in whichever form."""
    text = error.read().decode("utf-8", "replace")
    try:
        found = from_json(text)
        while isinstance(found, dict):
            found = found.get("error", found.get("message", found.get("detail")))
    except ValueError:
        found = text
    return _short(str(found)) if found else error.reason


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "..."


def _without(key: str, text: str) -> str:
    return text.replace(key, "***") if key else text


@dataclass(frozen=True)
class Local:
    """A folder of a transformers chat model: its config, tokenizer with a chat template, and safetensors.

    Nothing is fetched and no code of the folder is run. It is loaded with the first question, onto a GPU where there is
    one, and answers by its likeliest words, so always the same.
    """

    folder: str
    longest: int = 512
    """Tokens of an answer."""

    def __call__(self, messages: Sequence[Message]) -> str:
        import torch

        tokenizer, model = _loaded(self.folder)
        tokens = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        with torch.no_grad():
            out = model.generate(**tokens, max_new_tokens=self.longest, do_sample=False)
        return tokenizer.decode(out[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)


@cache
def _loaded(folder: str) -> tuple[Any, Any]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sfumato.io.device import choose

    if not Path(folder).is_dir():
        raise SfumatoError(f"there is no folder {folder}; a local chat model is a folder such as transformers saves")
    if not list(Path(folder).glob("*.safetensors")):
        raise SfumatoError(f"{folder} holds no safetensors, and nothing else is read")
    place = choose("auto")
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as e:
        raise SfumatoError(f"{folder} does not load as a chat model: {_short(str(e))}") from e
    if not tokenizer.chat_template:
        raise SfumatoError(f"the tokenizer in {folder} has no chat template; take a model that is made to chat")
    return tokenizer, model.eval().requires_grad_(False).to(place)


def chat_of(source: str, model: str = "", timeout: float = 60.0) -> Chat:
    """The chat at an address (``model`` names which of the server's) or in a folder."""
    if source.startswith(("http://", "https://")):
        if not model:
            raise SfumatoError(f"name the model that {source} shall run")
        return Endpoint(source, model, timeout)
    return Local(source)
