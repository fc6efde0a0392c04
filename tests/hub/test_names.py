"""What an argument of `freehold pull` names, and what a repository is stored as."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import NotFoundError, RequestError
from freehold.hub import resolve
from freehold.hub.catalog import KnownModel
from freehold.hub.names import Address, Local, Repository, read_reference, stored_name
from freehold.hub.sources import pull
from freehold.hub.store import Store, check_name
from loopback_hub import LoopbackHub


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)


@pytest.mark.parametrize(
    ("text", "expected", "name"),
    [
        ("Qwen/Qwen3-0.6B", Repository("hf", "Qwen/Qwen3-0.6B"), "qwen--qwen3-0.6b"),
        ("hf:a/b:q4_k_m@v1.0", Repository("hf", "a/b", "Q4_K_M", "v1.0"), "a--b--q4_k_m--at--v1.0"),
        ("a/b@refs/pr/1", Repository("hf", "a/b", None, "refs/pr/1"), "a--b--at--refs-pr-1-3701df99"),
        ("MS:a/b", Repository("ms", "a/b"), "a--b--ms"),
        ("modelscope:a/b:UD-Q4_K_XL", Repository("ms", "a/b", "UD-Q4_K_XL"), "a--b--ud-q4_k_xl--ms"),
        ("https://huggingface.co/a/b", Repository("hf", "a/b"), "a--b"),
        ("https://huggingface.co/a/b/tree/v1", Repository("hf", "a/b", None, "v1"), "a--b--at--v1"),
        ("https://www.modelscope.cn/models/a/b/summary", Repository("ms", "a/b"), "a--b--ms"),
    ],
)
def test_repositories(text: str, expected: Repository, name: str) -> None:
    found = read_reference(text)
    assert found == expected
    assert stored_name(found) == name


def test_addresses() -> None:
    found = read_reference("https://huggingface.co/a/b/blob/main/x-Q4_0.gguf")
    assert found == Address("https://huggingface.co/a/b/resolve/main/x-Q4_0.gguf")
    assert stored_name(found).startswith("x-q4_0-")
    assert stored_name(found) != stored_name(Address("https://other.example/x-Q4_0.gguf"))
    assert str(Address("https://x.example/m.gguf?key=secret#y")) == "https://x.example/m.gguf"


def test_a_path_that_exists_is_a_path_and_a_prefix_forces_the_hub() -> None:
    assert read_reference("org/name") == Repository("hf", "org/name")
    Path("org/name").mkdir(parents=True)
    assert read_reference("org/name") == Local(Path("org/name").absolute())
    assert read_reference("hf:org/name") == Repository("hf", "org/name")


def test_the_catalogue_comes_first() -> None:
    Path("smollm2").mkdir()
    assert isinstance(read_reference("SmolLM2:135M"), KnownModel)
    assert stored_name(Local(Path("smollm2").absolute())) == "smollm2-local"


@pytest.mark.parametrize("text", ["./a", "/a/b", "~/a", "a/b/c", "x.gguf", "../a/b", "a\\b/c"])
def test_a_path_that_is_missing(text: str) -> None:
    with pytest.raises(NotFoundError, match="no file or directory at"):
        read_reference(text)


def test_a_miss_says_what_is_near() -> None:
    with pytest.raises(NotFoundError, match=r"did you mean gpt-oss:20b"):
        read_reference("gpt-os:20b")


@pytest.mark.parametrize(
    "text",
    [
        "hf:a",
        "hf:a/b/c",
        "hf:../b",
        "hf:a/..",
        "hf:a/b@../x",
        "ms:a/b:",
        "hf:a/b@",
        "ftp://x/y",
        "file:///etc/passwd",
        "https://user:key@x.example/m",
        "https:///x",
        "https://x:port/",
        "https://x/a b",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(RequestError):
        read_reference(text)


@given(st.text(max_size=60) | st.from_regex(r"(hf:|ms:)?[\w.-]+/[\w.-]+(:\w+)?(@[\w/.]+)?", fullmatch=True))
@settings(max_examples=200, deadline=None)
def test_what_is_read_has_a_name_for_the_store(text: str) -> None:
    try:
        reference = read_reference(text)
    except (NotFoundError, RequestError):
        return
    assert stored_name(reference) == check_name(stored_name(reference))


def test_what_was_pulled_is_found_by_the_same_words(hub: LoopbackHub, store: Store) -> None:
    hub.repositories["org/tiny-GGUF"] = {"tiny-Q8_0.gguf": b"GGUF"}
    words = ("org/tiny-GGUF", "org/tiny-GGUF:Q8_0", "ms:org/tiny-GGUF")
    for word in words:
        path = pull(word, store)
        assert resolve(word, store).path == path
    assert len({resolve(word, store).name for word in words}) == len(words)
    with pytest.raises(NotFoundError, match="freehold pull ORG/NAME"):
        resolve("org/other", store)


def test_the_name_in_the_store_fetches_a_damaged_model_again(hub: LoopbackHub, store: Store) -> None:
    hub.repositories["org/tiny-GGUF"] = {"tiny-Q8_0.gguf": b"GGUF"}
    path = pull("ms:org/tiny-GGUF:Q8_0", store)
    path.write_bytes(b"")
    assert pull("org--tiny-gguf--q8_0--ms", store).read_bytes() == b"GGUF"
    with pytest.raises(NotFoundError):
        pull("org--other", store)
