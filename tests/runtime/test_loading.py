"""What the publisher's files say about sampling and stopping, and what load() refuses before it loads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from freehold import load
from freehold.errors import ModelFileError, NotFoundError, RequestError
from freehold.loading import sampling_defaults
from scripted_model import EOS, VOCAB, ByteTokenizer


def tokenizer(**special_ids: int) -> ByteTokenizer:
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
def test_publishers_sampling(wishes, expected):
    found = sampling_defaults(wishes, ByteTokenizer())
    assert (found.temperature, found.top_k, found.top_p) == expected


def test_stop_ids_are_the_union_of_every_source():
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
def test_hostile_generation_configs_are_named(wishes):
    with pytest.raises(ModelFileError, match=r"generation_config\.json"):
        sampling_defaults(wishes, ByteTokenizer())


@pytest.fixture
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))


@pytest.mark.usefixtures("_store")
def test_refusals_before_loading(tmp_path):
    with pytest.raises(RequestError, match="precision"):
        load("smollm2", precision="perfect")
    with pytest.raises(NotFoundError):
        load(tmp_path / "nothing.gguf")
    with pytest.raises(NotFoundError):
        load("no-such-model")


@pytest.mark.usefixtures("_store")
def test_first_use_fetches_with_progress(monkeypatch, tmp_path):
    seen = []

    def pull(name, store, *, progress, note):
        progress(1, 2)
        note("waiting")
        return tmp_path / "missing.gguf"

    monkeypatch.setattr("freehold.hub.sources.pull", pull)
    with pytest.raises(NotFoundError):
        load("smollm2", progress=lambda *args: seen.append(args), note=seen.append)
    assert seen == [("downloading smollm2", 1, 2), "waiting"]


@pytest.mark.usefixtures("_store")
def test_weights_that_do_not_fit_are_refused_before_they_are_read(monkeypatch, tmp_path):
    from freehold.errors import ResourceError

    class Checkpoint(SimpleNamespace):
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            return None

    monkeypatch.setattr("freehold.loading.open_checkpoint", lambda path: Checkpoint(n_bytes=10**15))
    with pytest.raises(ResourceError, match=r"weights take 1000000\.00 GB"):
        load(tmp_path)
