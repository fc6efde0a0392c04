"""`freehold serve`: options against each other, the models it finds, what it says, and the program as a whole."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from command_line import Run
from freehold.core import KV_BLOCK
from freehold.errors import NotFoundError, RequestError, ResourceError
from freehold.hub import Store
from freehold.server.source import ModelSource
from freehold.terminal import serve as serving
from freehold.terminal.library import CONVERSATIONS, Library, LoadOptions, only_model, read_models
from freehold.terminal.serve import greeting


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs no server: what would have been run. No keys from the environment, nothing is fetched."""
    monkeypatch.delenv("FREEHOLD_API_KEYS", raising=False)
    servers: list[Any] = []

    def run(server: Any, sockets: list[socket.socket]) -> int:
        for opened in sockets:
            opened.close()
        servers.append(server)
        return 130

    monkeypatch.setattr(serving, "run", run)
    monkeypatch.setattr(serving, "_fetch", lambda name, store: None)
    monkeypatch.setattr(serving, "_log_to_stderr", lambda: None)
    return servers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], ["--host 0.0.0.0", "--api-key", "--insecure-no-key"]),
        (["--host", "192.168.1.1"], ["--api-key"]),
        (["--preload"], ["--preload", "name one"]),
        (["--only"], ["--only", "name one"]),
        (["--any-name", "smollm2", "gpt-oss-20b=."], ["--any-name", "2"]),
        (["--max-body", "many"], ["--max-body", "32M"]),
        (["--cors-origin", "example.com"], ["example.com", "origin"]),
        (["--api-key", "a b"], ["API key"]),
        (["--api-key-file", "no-such-file"], ["no-such-file"]),
        (["no-such-model"], ["no-such-model"]),
        (["x=no/such/path"], ["no/such/path"]),
    ],
)
def test_what_cannot_be_served(freehold: Run, served: list[Any], options: list[str], words: list[str]) -> None:
    outcome = freehold("serve", "--port", "0", *options)
    assert outcome.status == 2
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1
    assert all(word in outcome.err for word in words)
    assert not served


def test_a_port_in_use(freehold: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        outcome = freehold("serve", "--port", port)
    assert outcome.status == 2
    assert f"port {port}" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_options_reach_the_server(
    freehold: Run, served: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREEHOLD_MEMORY", "1G")
    monkeypatch.setenv("FREEHOLD_API_KEYS", "from-env, other")
    keys = tmp_path / "keys"
    keys.write_text("# ours\n\nfrom-file\n")
    options = ["--api-key", "given", "--api-key-file", str(keys), "--host", "0.0.0.0", "--max-models", "2"]
    more = ["--keep-alive", "-1", "--timeout", "0", "--no-enforce", "--grace", "7", "--max-queue", "5"]
    outcome = freehold("serve", "smollm2", "--port", "0", "--preload", *options, *more)
    assert outcome.status == 130
    (server,) = served
    limits = server.service.pool.limits
    assert (limits.budget, limits.max_models, limits.keep_alive) == (2**30, 2, -1)
    assert (server.service.limits.timeout, server.service.limits.enforce) == (None, False)
    assert (server._grace, server._preload) == (7, ["smollm2"])
    rules = next(layer.args[0] for layer in server.config.app.user_middleware)
    assert rules.hosts is None
    assert all(rules.keys.namespace(key) for key in ("given", "from-env", "other", "from-file"))
    assert "ours" not in repr(rules)


def test_what_people_are_told() -> None:
    text = greeting("127.0.0.1", 11435, ["smollm2"], False)
    assert "OPENAI_BASE_URL=http://127.0.0.1:11435/v1" in text
    assert "ANTHROPIC_BASE_URL=http://127.0.0.1:11435 " in text
    assert "OLLAMA_HOST=http://127.0.0.1:11435" in text
    many = greeting("::1", 80, [f"model-{i}" for i in range(13)], True)
    assert "http://[::1]:80/v1" in many
    assert "and 3 more" in many
    assert "API key" in many


def make_model(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"12345")
    return directory


def test_words_for_models(tmp_path: Path) -> None:
    fetched: list[str] = []
    store = Store(tmp_path / "store")
    one, two = make_model(tmp_path / "one"), make_model(tmp_path / "x=y" / "two")
    words = ["SmolLM2:135m", str(one), f"Mine={one}", str(two), "smollm2"]
    names, paths = read_models(words, store, fetched.append)
    assert names == ["smollm2", "one", "mine", "two"]
    assert paths == {"one": one, "mine": one, "two": two}
    assert set(fetched) == {"smollm2"}
    with pytest.raises(RequestError, match="two models are called 'one'"):
        read_models([str(one), f"one={two}"], store, fetched.append)
    with pytest.raises(RequestError, match="model name"):
        read_models([f"../x={one}"], store, fetched.append)


def test_the_library_of_named_models(tmp_path: Path) -> None:
    library = Library({"one": make_model(tmp_path / "one")}, Store(tmp_path / "store"), LoadOptions())
    (source,) = library.sources()
    assert (source.name, source.n_bytes, source.format) == ("one", 5, "safetensors")
    assert str(tmp_path) not in repr(source)
    assert only_model([], library) == "one"
    (known,) = Library({"gpt-oss": tmp_path / "one"}, Store(tmp_path / "store"), LoadOptions()).sources()
    assert (source.aliases, known.aliases) == ((), ("gpt-oss-20b", "gpt-oss:20b"))
    with pytest.raises(NotFoundError):
        only_model([], Library({}, Store(tmp_path / "store"), LoadOptions()))


def test_the_library_of_the_store(smollm2_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(smollm2_home))
    library = Library({}, Store(smollm2_home), LoadOptions())
    source = next(source for source in library.sources() if source.name == "smollm2")
    assert source.aliases
    assert (source.format, source.quantization, source.n_bytes) == ("gguf", "Q4_1", 98_362_432)
    assert not Library({}, Store(smollm2_home), LoadOptions(), only=frozenset()).sources()

    footprint = library.measure(source)
    assert (footprint.family, footprint.context) == ("llama", 8192)
    assert footprint.n_parameters == 134_515_008
    assert footprint.n_bytes is not None
    for budget, context, n_contexts in (
        (footprint.n_bytes + 10**8, 8192, 1),
        (footprint.n_bytes - 10**8, None, 1),
        (2 * 10**9, 8192, CONVERSATIONS),
    ):
        with library.load(source, budget, lambda: None) as model:
            assert model.plan.weight_bytes + model.plan.n_blocks * KV_BLOCK * model.plan.token_bytes < budget
            assert model.max_context < 8192 if context is None else model.max_context == context
            assert model.plan.n_blocks * KV_BLOCK // model.max_context == n_contexts
    with pytest.raises(ResourceError, match="smollm2"):
        library.load(source, 10**8, lambda: None)


def test_a_load_that_is_not_wanted_any_more(smollm2_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(smollm2_home))
    library = Library({}, Store(smollm2_home), LoadOptions())
    source = ModelSource("smollm2")
    library.measure(source)

    def stop() -> None:
        raise InterruptedError("not wanted")

    with pytest.raises(InterruptedError):
        library.load(source, None, stop)


def test_the_program(smollm2_home: Path) -> None:
    """From the command to an answer and back to the shell."""
    command = [sys.executable, "-m", "freehold", "serve", "smollm2", "--port", "0", "--only"]
    env = {**os.environ, "FREEHOLD_HOME": str(smollm2_home)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stderr
            line = process.stderr.readline()
            assert line.startswith("Freehold serves smollm2 at http://127.0.0.1:")
            url = line.split()[-1]
            assert httpx.get(f"{url}/health").json() == {"status": "ok"}
            assert httpx.get(f"{url}/v1/models", headers={"host": "evil.example:8000"}).status_code == 403
            evil = httpx.get(f"{url}/v1/models", headers={"origin": "https://evil.example"})
            assert evil.status_code == 403
            assert "access-control-allow-origin" not in evil.headers
            body = {"model": "SmolLM2:latest", "max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}]}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
            assert answer["usage"]["completion_tokens"] == 2
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, "")
    assert "POST /v1/chat/completions 200" in err
    assert "Hello" not in err
    assert "Traceback" not in err
