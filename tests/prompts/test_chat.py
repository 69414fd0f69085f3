"""Chats: an endpoint against a server of this process, a local folder against a tiny random model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sfumato.errors import SfumatoError
from sfumato.prompts.chat import Endpoint, Local, Message, chat_of

HELLO: list[Message] = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]
SECRET = "sk-a-very-secret-key"


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """No proxy stands between here and here, and no key but the test's."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@contextmanager
def serving(
    status: int = 200, body: object = None, headers: dict[str, str] | None = None
) -> Iterator[tuple[str, list]]:
    """A server that answers everything alike; its address, and what it was asked."""
    asked: list[tuple[str, dict, dict]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, dict(self.headers), said))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        do_GET = do_POST

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(text: str) -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def test_an_endpoint_is_asked_as_openai_is(monkeypatch):
    with serving(body=answer("hi")) as (url, asked):
        assert Endpoint(url, "some-model")(HELLO) == "hi"
        assert chat_of(f"{url}/chat/completions", "some-model")(HELLO) == "hi"
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
        Endpoint(url + "/", "some-model")(HELLO)
    paths, headers, said = zip(*asked, strict=True)
    assert set(paths) == {"/v1/chat/completions"}
    assert said[0]["messages"] == HELLO and said[0]["model"] == "some-model"
    assert "Authorization" not in headers[0]
    assert headers[2]["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    ("status", "body", "match"),
    [
        (401, {"error": {"message": "no key given"}}, "answered 401: no key given; set OPENAI_API_KEY$"),
        (404, {"error": "model 'x' not found"}, "answered 404: model 'x' not found$"),
        (429, {"detail": "slow down"}, "answered 429: slow down$"),
        (500, b"<html>broken</html>", "answered 500: <html>broken</html>$"),
        (503, b"", "answered 503: Service Unavailable$"),
        (200, b"<html>hello</html>", "does not speak OpenAI's chat completions: <html>hello</html>$"),
        (200, {"choices": []}, "does not speak OpenAI's chat completions"),
        (200, {"choices": [{"message": {"content": None}}]}, "does not speak OpenAI's chat completions"),
    ],
)
def test_what_a_server_says_is_one_line(status, body, match):
    with serving(status, body) as (url, _), pytest.raises(SfumatoError, match=match) as error:
        Endpoint(url, "m")(HELLO)
    assert "\n" not in str(error.value)


def test_no_error_shows_the_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for status, body in ((401, {"error": {"message": f"bad key {SECRET}"}}), (200, f"you sent {SECRET}".encode())):
        with serving(status, body) as (url, _), pytest.raises(SfumatoError) as error:
            Endpoint(url, "m")(HELLO)
        assert SECRET not in str(error.value) and "***" in str(error.value)


def test_a_redirect_does_not_carry_the_key_away(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(body=answer("caught")) as (other, caught):
        with serving(302, b"", {"Location": other}) as (url, _), pytest.raises(SfumatoError, match="answered 302"):
            Endpoint(url, "m")(HELLO)
        assert not caught


def test_nobody_there_and_too_slow():
    with serving(body=answer("hi")) as (url, _):
        pass
    with pytest.raises(SfumatoError, match=f"{url} cannot be reached"):
        Endpoint(url, "m")(HELLO)

    hold = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self):
            hold.wait()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(SfumatoError, match=r"did not answer within 0\.2 seconds"):
            Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "m", timeout=0.2)(HELLO)
    finally:
        hold.set()
        server.shutdown()
        server.server_close()


def test_addresses_and_folders_are_told_apart(tmp_path):
    with pytest.raises(SfumatoError, match=r"name the model that https://example\.org shall run"):
        chat_of("https://example.org")
    assert chat_of("http://localhost/v1", "m", 3.0) == Endpoint("http://localhost/v1", "m", 3.0)
    assert chat_of(str(tmp_path)) == Local(str(tmp_path))
    with pytest.raises(SfumatoError, match="http or https"):
        Endpoint("file:///etc/passwd", "m")


TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random Llama that chats in ten words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<end>", "system", "user", "assistant", "be", "short", "hello", "cube", "box"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                    num_attention_heads=2, num_key_value_heads=2, eos_token_id=1, bos_token_id=None)
    )  # fmt: skip
    place = tmp_path_factory.mktemp("llama")
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def test_a_local_model_answers_always_the_same(folder):
    chat = Local(str(folder), longest=5)
    said = chat(HELLO)
    assert isinstance(said, str) and said == Local(str(folder), longest=5)(HELLO)
    assert len(said.split()) <= 5


def test_what_is_no_chat_model_is_said(folder, tmp_path):
    import shutil

    with pytest.raises(SfumatoError, match="there is no folder /nowhere"):
        Local("/nowhere")(HELLO)
    with pytest.raises(SfumatoError, match="holds no safetensors, and nothing else is read"):
        Local(str(tmp_path))(HELLO)
    mute = tmp_path / "mute"
    shutil.copytree(folder, mute)
    for file in mute.glob("chat_template*"):
        file.unlink()
    config = json.loads((mute / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (mute / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(SfumatoError, match="has no chat template"):
        Local(str(mute))(HELLO)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(SfumatoError, match="does not load as a chat model"):
        Local(str(broken))(HELLO)
