"""What Ollama's clients learn of the models before they ask one, and what they may not do to them."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import httpx
import ollama
import pytest

from freehold.server.health import index
from freehold.server.ollama import ENDPOINTS, GenerateBody, generate
from freehold.server.ollama_models import ShowBody, _abilities, running, show, tags, way_to_think
from freehold.server.resident import ModelCard
from freehold.text.harmony import Harmony
from freehold.text.templates import ChatTemplate
from freehold.text.tokenizer import Tokenizer, load_tokenizer
from ollama_scripted import Talker, says
from scripted_model import HarmonyByteTokenizer, HarmonyTalk, PlainTalk
from served import served
from tiny_vocabulary import gguf_metadata

KNOWN = ModelCard(
    "gpt-oss-20b",
    1_700_000_000,
    loaded=False,
    n_bytes=13_761_264_768,
    context=131_072,
    format="safetensors",
    quantization="MXFP4",
    family="gpt_oss",
    n_parameters=20_914_757_184,
    digest="ab" * 32,
)


@pytest.fixture(scope="module")
def talker() -> Iterator[Talker]:
    models = {"SmolLM2": says("ok", PlainTalk), "gpt:20b": says("ok", HarmonyTalk)}
    with served(models, (*ENDPOINTS, index(ENDPOINTS))) as url, Talker(url, models) as talker:
        yield talker


class Pool:
    """A pool of models none of which is real."""

    def __init__(self, *cards: ModelCard) -> None:
        self._cards = cards
        self.kept: list[tuple[str, float]] = []

    def cards(self) -> list[ModelCard]:
        return list(self._cards)

    def card(self, name: str) -> ModelCard:
        return next(card for card in self._cards if card.name == name)

    def keep(self, name: str, seconds: float) -> None:
        self.kept.append((name, seconds))


def answer(handler: Any, pool: Pool, body: Any = None) -> Any:
    """What a handler says of such a pool."""
    call = SimpleNamespace(service=SimpleNamespace(pool=pool), body=body)
    return json.loads(bytes(asyncio.run(handler(call)).body))


def test_lists(talker: Talker) -> None:
    listed = talker.ollama.list().models
    assert [model.model for model in listed] == ["SmolLM2:latest", "gpt:20b"]
    for model in listed:
        assert len(model.digest or "") == 64
        assert abs((model.modified_at or datetime.datetime.min).timestamp() - datetime.datetime.now().timestamp()) < 600
        assert talker.ollama.show(model.model or "").capabilities is not None
    loaded = talker.ollama.ps().models
    assert [(model.name, model.context_length) for model in loaded] == [("SmolLM2:latest", 256), ("gpt:20b", 256)]
    assert all((model.expires_at or datetime.datetime.min).year == 9999 for model in loaded)


def test_a_listed_name_can_be_asked(talker: Talker) -> None:
    for model in talker.http.get("/api/tags").json()["models"]:
        for name in (model["name"], model["name"].upper(), model["name"].removesuffix(":latest")):
            assert talker.whole(model=name)["done_reason"] == "stop"


def test_what_is_known_of_a_model_is_said() -> None:
    (listed,) = answer(tags, Pool(KNOWN))["models"]
    assert listed == {
        "name": "gpt-oss-20b:latest",
        "model": "gpt-oss-20b:latest",
        "modified_at": "2023-11-14T22:13:20.000000Z",
        "size": 13_761_264_768,
        "digest": "ab" * 32,
        "details": {
            "parent_model": "",
            "format": "safetensors",
            "family": "gpt_oss",
            "families": ["gpt_oss"],
            "parameter_size": "20.9B",
            "quantization_level": "MXFP4",
        },
    }
    shown = answer(show, Pool(KNOWN), ShowBody.model_validate({"model": "gpt-oss-20b"}))
    assert shown["details"] == listed["details"]
    assert shown["model_info"] == {
        "general.architecture": "gpt_oss",
        "general.basename": "gpt-oss-20b",
        "general.parameter_count": 20_914_757_184,
        "gpt_oss.context_length": 131_072,
    }
    assert shown["capabilities"] == ["completion"]


def test_only_loaded_models_run() -> None:
    loaded = replace(KNOWN, name="m", loaded=True, memory=5, expires=1_700_000_300.5, n_parameters=134_515_008)
    (found,) = answer(running, Pool(KNOWN, loaded))["models"]
    assert (found["name"], found["size"], found["size_vram"]) == ("m:latest", 5, 0)
    assert found["expires_at"] == "2023-11-14T22:18:20.500000Z"
    assert found["details"]["parameter_size"] == "134.5M"


def test_a_model_is_unloaded_by_asking_nothing_of_it_for_no_time() -> None:
    for card in (KNOWN, replace(KNOWN, loaded=True, expires=1_700_000_000.0)):
        pool = Pool(card)
        body = GenerateBody.model_validate({"model": "gpt-oss-20b", "keep_alive": 0})
        assert answer(generate, pool, body)["done_reason"] == "unload"
        assert pool.kept == [("gpt-oss-20b", 0)]


def test_show_of_a_loaded_model(talker: Talker) -> None:
    by_client = talker.ollama.show("gpt:20b")
    assert by_client.capabilities == ["completion", "thinking"]  # this double does not write tools into the prompt
    assert (by_client.modelinfo or {})["unknown.context_length"] == 256
    older = talker.http.post("/api/show", json={"name": "smollm2:latest"}).json()
    assert older["capabilities"] == ["completion"]
    assert talker.refused("/api/show", 404, model="other").startswith("no model 'other'")
    assert talker.http.post("/api/show", json={}).json() == {"error": "model is missing; expected the name of a model"}


def test_formats_are_asked_what_they_can() -> None:
    tokenizer = load_tokenizer(None, gguf_metadata(), {})
    content = "{% for m in messages %}{{ m.content }}{% endfor %}"
    thinking = "{% if enable_thinking %}<think>{% endif %}"
    harmony = Harmony(cast(Tokenizer, HarmonyByteTokenizer()))
    assert way_to_think(harmony) == "levels"
    assert way_to_think(ChatTemplate(content + thinking, tokenizer)) == "switch"
    assert way_to_think(ChatTemplate(content, tokenizer)) is None
    assert _abilities(harmony) == ["tools", "thinking"]
    assert _abilities(ChatTemplate("{{ tools | tojson }}" + content, tokenizer)) == ["tools"]
    assert _abilities(ChatTemplate("{{ raise_exception('no') }}", tokenizer)) == []
    assert _abilities(None) == []


def test_probes(talker: Talker) -> None:
    """What clients look at to find a server: Ollama's own with HEAD, many with the words it answers GET with."""
    assert talker.http.head("/").status_code == 200
    greeting = talker.http.get("/").text
    assert "Ollama is running" in greeting
    assert greeting.startswith("Freehold")
    version = talker.http.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 13, 4)
    assert talker.http.get("/api/nothing").json()["error"].startswith("there is nothing at /api/nothing")


def test_a_pull_of_what_is_here_has_nothing_to_do(talker: Talker) -> None:
    """Codex and others pull a model before its first use, and give up where that fails."""
    assert talker.ollama.pull("smollm2:latest").status == "success"
    assert [step.status for step in talker.ollama.pull("SmolLM2", stream=True)] == ["success"]
    assert talker.http.post("/api/pull", json={}).status_code == 400


def test_no_request_changes_models(talker: Talker) -> None:
    client = talker.ollama
    for change in (
        lambda: client.pull("llama3.2"),
        lambda: client.pull("http://169.254.169.254/x", insecure=True),
        lambda: list(client.pull("llama3.2", stream=True)),
        lambda: client.push("SmolLM2"),
        lambda: client.create("x", from_="SmolLM2"),
        lambda: client.copy("SmolLM2", "x"),
        lambda: client.delete("SmolLM2"),
    ):
        with pytest.raises(ollama.ResponseError, match="freehold pull") as found:
            change()
        assert found.value.status_code == 403
    for send in (httpx.post, httpx.head):
        assert send(f"{talker.url}/api/blobs/sha256:ab").status_code == 403
    with pytest.raises(ollama.ResponseError, match="no embeddings") as found:
        client.embed("SmolLM2", "x")
    assert found.value.status_code == 400
    assert len(client.list().models) == 2
