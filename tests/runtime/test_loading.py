"""What the publisher's files say about sampling and stopping, and what load() refuses before it loads."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from freehold import load
from freehold.errors import ModelFileError, NotFoundError, RequestError, TemplateError, UnsupportedError
from freehold.loading import load_text, sampling_defaults
from scripted_model import EOS, VOCAB, ByteTokenizer

LLAMA: dict[str, Any] = {  # of a checkpoint without tensors
    "names": (),
    "config": {"model_type": "llama"},
    **dict.fromkeys(("tokenizer_json", "tiktoken_model", "gguf_metadata")),
}


def tokenizer(**special_ids: int) -> Any:
    found = ByteTokenizer()
    found.special_ids = {f"<|{name}|>": id for name, id in special_ids.items()}
    return found


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({}, (0.0, 0, 1.0)),
        ({"do_sample": False, "temperature": 0.7}, (0.0, 0, 1.0)),
        ({"do_sample": True}, (1.0, 0, 1.0)),
        ({"temperature": 0.6, "top_p": 0.95}, (0.6, 0, 0.95)),
        ({"do_sample": True, "temperature": 1, "top_k": 20, "top_p": None}, (1, 20, 1.0)),
    ],
)
def test_publishers_sampling(wishes: Any, expected: Any) -> None:
    found = sampling_defaults(wishes, tokenizer())
    assert (found.temperature, found.top_k, found.top_p) == expected


def test_stop_ids_are_the_union_of_every_source() -> None:
    found = sampling_defaults({"eos_token_id": [1, 2]}, tokenizer(im_end=5, eot_id=6, think=7))
    assert found.stop_ids == {EOS, 1, 2, 5, 6}
    assert sampling_defaults({"eos_token_id": 3}, tokenizer()).stop_ids == {EOS, 3}


@pytest.mark.parametrize(
    "wishes",
    [
        {"temperature": "hot"},
        {"temperature": -1},
        {"do_sample": True, "top_p": 2},
        {"do_sample": True, "top_k": 1.5},
        {"do_sample": True, "top_k": True},
        {"eos_token_id": "x"},
        {"eos_token_id": [VOCAB]},
        {"eos_token_id": [True]},
        {"eos_token_id": -1},
        {"eos_token_id": {"a": 1}},
    ],
)
def test_hostile_generation_configs_are_named(wishes: Any) -> None:
    with pytest.raises(ModelFileError, match=r"generation_config\.json"):
        sampling_defaults(wishes, tokenizer())


@pytest.fixture
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))


@pytest.mark.usefixtures("_store")
def test_refusals_before_loading(tmp_path: Path) -> None:
    perfect: Any = "perfect"
    with pytest.raises(RequestError, match="precision"):
        load("smollm2", precision=perfect)
    with pytest.raises(NotFoundError):
        load(tmp_path / "nothing.gguf")
    with pytest.raises(NotFoundError):
        load("no-such-model")


@pytest.mark.usefixtures("_store")
def test_first_use_fetches_with_progress(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []

    def pull(name: str, store: Any, *, progress: Any, note: Any) -> Any:
        progress(1, 2)
        note("waiting")
        return tmp_path / "missing.gguf"

    monkeypatch.setattr("freehold.hub.sources.pull", pull)
    with pytest.raises(NotFoundError):
        load("smollm2", progress=lambda *args: seen.append(args), note=seen.append)
    assert seen == [("downloading smollm2", 1, 2), "waiting"]


@pytest.mark.usefixtures("_store")
def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from freehold.errors import ResourceError

    class Checkpoint(SimpleNamespace):
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *exception: Any) -> Any:
            return None

    monkeypatch.setattr(
        "freehold.loading.open_checkpoint",
        lambda path: Checkpoint(n_bytes=10**15, **LLAMA),
    )
    with pytest.raises(ResourceError, match=r"weights take 1000000\.00 GB"):
        load(tmp_path)


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A checkpoint of nothing, whose weights take three steps to load. Returns what happened, in order."""
    happened: list[str] = []

    class Checkpoint(SimpleNamespace):
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *exception: Any) -> Any:
            assert not any(thread.name == "freehold-text" for thread in threading.enumerate())
            happened.append("closed")

    def load_model(checkpoint: Any, *, progress: Any, **wishes: Any) -> Any:
        for step in range(3):
            happened.append(f"step {step}")
            while any(thread.name == "freehold-text" for thread in threading.enumerate()):
                time.sleep(0.001)
            progress(step, 3)
        raise ModelFileError("the weights are damaged")

    monkeypatch.setattr("freehold.loading.open_checkpoint", lambda path: Checkpoint(n_bytes=1, **LLAMA))
    monkeypatch.setattr("freehold.loading.load_model", load_model)
    return happened


@pytest.mark.usefixtures("_store")
def test_a_broken_tokenizer_ends_the_loading_of_weights_at_once(
    loading: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load_text(checkpoint: Any) -> Any:
        raise UnsupportedError("this tokenizer")

    monkeypatch.setattr("freehold.loading.load_text", load_text)
    with pytest.raises(UnsupportedError, match="this tokenizer"):
        load(tmp_path)
    assert loading == ["step 0", "closed"]


@pytest.mark.usefixtures("_store")
def test_damaged_weights_leave_no_thread_behind(
    loading: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("freehold.loading.load_text", lambda checkpoint: None)
    with pytest.raises(ModelFileError, match="weights are damaged"):
        load(tmp_path, progress=lambda what, done, total: loading.append(f"{what}: {done}"))
    name = tmp_path.name
    assert loading == [
        *(line for step in range(3) for line in (f"step {step}", f"loading {name}: {step}")),
        "closed",
    ]


def test_a_broken_template_names_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.loading.load_tokenizer", lambda *files, **more: ByteTokenizer())
    checkpoint: Any = SimpleNamespace(
        path="some.gguf",
        tokenizer_json=None,
        gguf_metadata={},
        tiktoken_model=None,
        tokenizer_config={},
        config={},
        chat_template="{% for %}",
    )
    with pytest.raises(TemplateError, match=r"some\.gguf: .*line 1"):
        load_text(checkpoint)


@pytest.mark.parametrize("wish", [{"precision": "sloppy"}, {"weights": "int3"}])
def test_unknown_words_are_refused_before_anything_is_fetched(
    wish: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.loading.Store", None)
    with pytest.raises(RequestError, match="expected one of"):
        load("smollm2", **wish)
