"""Pulling from a URL and from this machine."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from freehold.errors import DownloadError, NotFoundError, RequestError
from freehold.hub import resolve
from freehold.hub.sources import pull
from freehold.hub.store import Store
from loopback_hub import Fault, LoopbackHub, sha256

GGUF = b"GGUF" + bytes(range(256)) * 8192
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()


def test_a_folder_is_explored_by_its_index(hub: LoopbackHub, store: Store) -> None:
    names = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors.index.json": INDEX}
    names |= {name: name.encode() for name in SHARDS}
    hub.files |= {f"/models/tiny/{name}": data for name, data in names.items()}
    path = pull(f"{hub.url}/models/tiny/", store)
    assert path.name.startswith("tiny-")
    assert {name: (path / name).read_bytes() for name in names} == names
    del hub.files[f"/models/tiny/{SHARDS[1]}"]
    with pytest.raises(DownloadError, match=r"has no model-00002-of-00002.safetensors"):
        pull(f"{hub.url}/models/tiny", store)
    with pytest.raises(DownloadError, match=r"has no config.json"):
        pull(f"{hub.url}/models", store)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "x.bin", 3])
def test_an_index_that_names_other_places(hub: LoopbackHub, store: Store, name: object) -> None:
    hub.files |= {
        "/m/config.json": b"{}",
        "/m/model.safetensors.index.json": json.dumps({"weight_map": {"a": name}}).encode(),
    }
    with pytest.raises(DownloadError, match=r"names files that are not|is no index"):
        pull(f"{hub.url}/m", store)


def test_a_gguf_with_its_digest(hub: LoopbackHub, store: Store) -> None:
    hub.files |= {"/tiny-Q4_0.gguf": GGUF, "/SHA256SUMS": f"{sha256(GGUF)}  tiny-Q4_0.gguf\n".encode()}
    hub.faults["/tiny-Q4_0.gguf"] = Fault(times=1, body=bytes(len(GGUF)))
    path = pull(f"{hub.url}/tiny-Q4_0.gguf", store)
    assert path.read_bytes() == GGUF
    assert pull(f"{hub.url}/tiny-Q4_0.gguf", store) == path


def test_without_a_digest_the_etag_decides_whether_to_go_on(hub: LoopbackHub, store: Store) -> None:
    url = f"{hub.url}/tiny.gguf"
    hub.files["/tiny.gguf"] = GGUF
    hub.faults["/tiny.gguf"] = Fault(times=1, cut=1_200_000)
    assert pull(url, store).read_bytes() == GGUF
    assert hub.bytes_asked("/tiny.gguf") == ["", "bytes=1200000-"]
    store.remove(store.models()[0].name)
    hub.requests.clear()
    hub.faults["/tiny.gguf"] = Fault(times=-1, cut=0)
    with pytest.raises(DownloadError, match=r"was cut at 0 bytes"):
        pull(url, store)


def test_a_file_that_changed_between_two_pulls_is_fetched_anew(
    hub: LoopbackHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files["/tiny.gguf"] = GGUF
    hub.faults["/tiny.gguf"] = Fault(times=1, cut=1_200_000)

    def interrupted(done: int, total: int) -> None:
        if done >= 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(f"{hub.url}/tiny.gguf", store, progress=interrupted)
    other = GGUF[:10] + b"changed" + GGUF[17:]
    hub.files["/tiny.gguf"] = other
    assert pull(f"{hub.url}/tiny.gguf", store).read_bytes() == other


def test_a_slow_file_can_be_interrupted(hub: LoopbackHub, store: Store) -> None:
    hub.files["/tiny.gguf"] = GGUF
    hub.faults["/tiny.gguf"] = Fault(wait=threading.Event())

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(f"{hub.url}/tiny.gguf", store, progress=interrupted)
    assert not [thread for thread in threading.enumerate() if thread.name == "freehold-pull"]
    assert store.models() == []


def test_a_query_is_not_recorded(hub: LoopbackHub, store: Store) -> None:
    hub.files["/tiny.gguf"] = GGUF
    pull(f"{hub.url}/tiny.gguf?key=secret", store)
    assert b"secret" not in b"".join(path.read_bytes() for path in store.root.rglob("*.json"))


@pytest.mark.parametrize("copy", [False, True])
def test_a_directory_of_this_machine_is_linked_or_copied(store: Store, tmp_path: Path, copy: bool) -> None:
    mine = tmp_path / "Mine"
    mine.mkdir()
    for name in ("config.json", "model.safetensors", "notes.txt"):
        (mine / name).write_bytes(name.encode())
    path = pull(str(mine), store, copy=copy)
    assert path == store.path("mine")
    assert sorted(os.listdir(path)) == ["config.json", "freehold.json", "manifest.json", "model.safetensors"]
    assert (path / "config.json").samefile(mine / "config.json") != copy
    assert resolve("mine", store).path == path
    assert pull(str(mine), store) == path
    elsewhere = tmp_path / "other" / "mine"
    elsewhere.mkdir(parents=True)
    (elsewhere / "config.json").write_bytes(b"{}")
    with pytest.raises(RequestError, match=r"another model called mine"):
        pull(str(elsewhere), store)


def test_a_file_of_this_machine(store: Store, tmp_path: Path) -> None:
    for name in ("smollm2.gguf", "big-00001-of-00002.gguf", "notes.txt"):
        (tmp_path / name).write_bytes(GGUF)
    path = pull(str(tmp_path / "smollm2.gguf"), store)
    assert (path.name, path.parent.name) == ("smollm2.gguf", "smollm2-local")
    with pytest.raises(DownloadError, match=r"lacks big-00002-of-00002.gguf"):
        pull(str(tmp_path / "big-00001-of-00002.gguf"), store)
    with pytest.raises(DownloadError, match=r"neither a .gguf file nor a directory"):
        pull(str(tmp_path / "notes.txt"), store)
    with pytest.raises(NotFoundError, match=r"no file or directory at"):
        pull(str(tmp_path / "none.gguf"), store)
