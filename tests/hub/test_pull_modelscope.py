"""Pulling from ModelScope, and the catalogue's order of sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.errors import DownloadError, RequestError
from freehold.hub.catalog import KnownModel
from freehold.hub.sources import pull
from freehold.hub.store import Store
from loopback_hub import Fault, LoopbackHub, sha256

REPO = "org/tiny"
WEIGHTS = b"SAFE" + bytes(range(256)) * 8192
CHECKPOINT = {"config.json": b"{}", "model.safetensors": WEIGHTS, "original/model.safetensors": b"copy"}


@pytest.fixture
def repository(hub: LoopbackHub) -> LoopbackHub:
    hub.repositories[REPO] = dict(CHECKPOINT)
    return hub


def known(*sources: str, **changes: object) -> dict[str, KnownModel]:
    facts = {"title": "Tiny", "aliases": (), "licence": "MIT", "format": "safetensors", "precision": "F32"}
    return {"tiny": KnownModel(name="tiny", n_bytes=1, sources=sources, **{**facts, **changes})}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [f"ms:{REPO}", f"modelscope:{REPO}", f"https://modelscope.cn/models/{REPO}"])
def test_a_checkpoint(repository: LoopbackHub, store: Store, name: str) -> None:
    path = pull(name, store)
    assert path.name == "org--tiny--ms"
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    record = store.models()[0].record
    assert record is not None
    assert [file.name for file in record.files] == ["config.json", "model.safetensors"]
    assert (record.source, record.revision, record.licence) == (f"ms:{REPO}", "master", "MIT")


def test_the_token_goes_to_modelscope_alone(
    repository: LoopbackHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-secret")
    repository.files["/elsewhere"] = CHECKPOINT["config.json"]
    repository.faults["/config.json"] = Fault(redirect=f"{repository.storage}/elsewhere")
    pull(f"ms:{REPO}", store)
    for asked in repository.requests:
        assert ("Authorization" in asked.headers) == ("Cookie" in asked.headers) == (asked.path != "/elsewhere")


def test_cut_wrong_and_late(repository: LoopbackHub, store: Store) -> None:
    repository.faults["/model.safetensors"] = Fault(times=1, cut=1_100_000)
    repository.faults["/config.json"] = Fault(times=1, body=b"[]")
    path = pull(f"ms:{REPO}", store)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert (path / "config.json").read_bytes() == b"{}"
    repository.faults["/model.safetensors"] = Fault(times=-1, body=bytes(len(WEIGHTS)))
    store.remove("org--tiny--ms")
    with pytest.raises(DownloadError, match=r"has the SHA-256 \w+ instead of \w+, twice"):
        pull(f"ms:{REPO}", store)


def test_what_is_not_there(repository: LoopbackHub, store: Store) -> None:
    for name in ("ms:org/none", f"ms:{REPO}@v9"):
        with pytest.raises(DownloadError, match=r"has no repository"):
            pull(name, store)
    with pytest.raises(RequestError, match=r"holds safetensors and no quantisations"):
        pull(f"ms:{REPO}:Q4_K_M", store)
    repository.gated[REPO] = 403
    with pytest.raises(DownloadError, match=r"403.*MODELSCOPE_API_TOKEN"):
        pull(f"ms:{REPO}", store)


def test_the_catalogues_next_source_is_tried_and_goes_on(repository: LoopbackHub, store: Store) -> None:
    repository.faults[f"/api/models/{REPO}"] = Fault(times=-1)
    notes: list[str] = []
    path = pull("Tiny", store, note=notes.append, catalog=known(f"hf:{REPO}", f"ms:{REPO}"))
    assert (path.name, len(notes)) == ("tiny", 1)
    assert "trying ModelScope (org/tiny)" in notes[0]
    manifest = store.models()[0].manifest
    assert manifest is not None
    assert manifest.licence == "MIT"


def test_the_second_source_goes_on_from_the_first(repository: LoopbackHub, store: Store) -> None:
    repository.listed["config.json"] = {"size": 99}  # only Hugging Face's listing is spelt so
    path = pull("tiny", store, catalog=known(f"hf:{REPO}", f"ms:{REPO}"))
    assert (path / "model.safetensors").read_bytes() == WEIGHTS


def test_when_no_source_delivers_each_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "http://127.0.0.1:9")
    with pytest.raises(
        DownloadError, match=r"cannot fetch tiny. Hugging Face \(org/tiny\): .*; ModelScope \(org/tiny\): "
    ):
        pull("tiny", store, catalog=known(f"hf:{REPO}", f"ms:{REPO}"))
    with pytest.raises(RequestError, match=r"--from is for models of one pinned file"):
        pull("tiny", store, source_file=Path("x"), catalog=known(f"hf:{REPO}"))


def test_a_pinned_digest_is_held_against_the_listing(repository: LoopbackHub, store: Store) -> None:
    with pytest.raises(DownloadError, match=r"the catalogue pins 0000"):
        pull("tiny", store, catalog=known(f"ms:{REPO}", digests={"model.safetensors": "0" * 64}))
    assert pull("tiny", store, catalog=known(f"ms:{REPO}", digests={"model.safetensors": sha256(WEIGHTS)})).is_dir()


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"Code": 500, "Message": "no"}', b'{"Data": {"Files": 1}}'])
def test_answers_that_are_not_the_api(
    repository: LoopbackHub, store: Store, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.hub.web.WebClient.read", lambda *args: body)
    with pytest.raises(DownloadError):
        pull(f"ms:{REPO}", store)
