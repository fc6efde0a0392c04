"""Pulling from Hugging Face: the real client against a hub on loopback that misbehaves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from freehold.errors import DownloadError, RequestError, ResourceError
from freehold.hub.sources import pull
from freehold.hub.store import Store
from loopback_hub import COMMIT, Fault, LoopbackHub, git_oid, sha256

REPO = "org/tiny"
WEIGHTS = b"SAFE" + bytes(range(256)) * 8192  # 2 MiB: more than one read
CHECKPOINT = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"model": {}}',
    "generation_config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "README.md": b"# tiny",
    "pytorch_model.bin": b"pickle",
    "original/model.safetensors": b"copy",
    "metal/model.bin": b"copy",
    "onnx/model.onnx": b"copy",
}
WANTED = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
GGUFS = {f"tiny-{quant}.gguf": quant.encode() * 9 for quant in ("Q4_K_M", "Q8_0", "IQ2_XXS")}


@pytest.fixture
def repository(hub: LoopbackHub) -> LoopbackHub:
    hub.repositories[REPO] = dict(CHECKPOINT)
    return hub


def files_in(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path) if name not in ("manifest.json", "freehold.json"))


def test_a_checkpoint_without_what_it_does_not_need(repository: LoopbackHub, store: Store) -> None:
    steps: list[tuple[int, int]] = []
    seen: dict[str, tuple[int, int]] = {}
    path = pull(REPO, store, progress=lambda *step: steps.append(step), files=seen.update)
    assert path == store.path("org--tiny") == store.root / "models/org--tiny"
    assert files_in(path) == WANTED
    assert all((path / name).read_bytes() == CHECKPOINT[name] for name in WANTED)
    total = sum(len(CHECKPOINT[name]) for name in WANTED)
    assert steps[-1] == (total, total)
    assert seen["model.safetensors"] == (len(WEIGHTS), len(WEIGHTS))
    record = json.loads((path / "freehold.json").read_text())
    assert (record["format"], record["name"], record["source"]) == (1, "org--tiny", f"hf:{REPO}")
    assert (record["revision"], record["licence"]) == (COMMIT, "apache-2.0")
    listed = {file["name"]: (file["size"], file["sha256"]) for file in record["files"]}
    assert listed == {name: (len(CHECKPOINT[name]), sha256(CHECKPOINT[name])) for name in WANTED}
    assert store.partials() == {}
    n_requests = len(repository.requests)
    assert pull(REPO, store) == path
    assert len(repository.requests) == n_requests


def test_the_token_stays_with_the_endpoint(
    repository: LoopbackHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(REPO, store)
    port = repository.url.rpartition(":")[2]
    carried = {
        ("Authorization" in asked.headers, asked.headers["Host"].endswith(port)) for asked in repository.requests
    }
    assert carried == {(True, True), (False, False)}


def test_a_cut_connection_goes_on_where_it_was(repository: LoopbackHub, store: Store) -> None:
    repository.faults["/model.safetensors"] = Fault(times=2, cut=700_000)
    path = pull(REPO, store)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [wanted for wanted in repository.bytes_asked("/model.safetensors") if wanted]
    assert {"bytes=700000-", "bytes=1400000-"} <= set(ranges)


def test_a_server_that_ignores_ranges_is_read_from_the_start(repository: LoopbackHub, store: Store) -> None:
    repository.faults["/model.safetensors"] = Fault(times=2, cut=1_500_000, ignore_range=True)
    assert (pull(REPO, store) / "model.safetensors").read_bytes() == WEIGHTS


def test_the_next_pull_goes_on_from_a_failed_one(repository: LoopbackHub, store: Store) -> None:
    repository.faults["/model.safetensors"] = Fault(times=1, cut=900_000)
    repository.faults["/tokenizer.json"] = Fault(times=-1, status=403)
    with pytest.raises(DownloadError, match=r"tokenizer.json with 403.*granted by its publisher"):
        pull(REPO, store)
    assert store.models() == []
    del repository.faults["/tokenizer.json"]
    part = store.root / "partial/org--tiny/model.safetensors.part"
    kept = part.stat().st_size if part.exists() else len(WEIGHTS)
    repository.requests.clear()
    assert (pull(REPO, store) / "model.safetensors").read_bytes() == WEIGHTS
    asked = repository.bytes_asked("/model.safetensors")
    assert asked == ([f"bytes={kept}-"] * 2 if 0 < kept < len(WEIGHTS) else [""] * 2 if not kept else [])


def test_wrong_bytes_of_the_right_size_are_fetched_again(repository: LoopbackHub, store: Store) -> None:
    wrong = bytearray(WEIGHTS)
    wrong[1_000_000] ^= 1
    repository.faults["/model.safetensors"] = Fault(times=1, body=bytes(wrong))
    assert (pull(REPO, store) / "model.safetensors").read_bytes() == WEIGHTS
    repository.faults["/config.json"] = Fault(times=-1, body=b'{"model_type": "lLama"}')
    store.remove("org--tiny")
    with pytest.raises(DownloadError, match=r"config.json has the git hash .* instead of .*, twice"):
        pull(REPO, store)
    assert store.models() == []


def test_a_listing_that_is_wrong_about_the_size(repository: LoopbackHub, store: Store) -> None:
    repository.listed["model.safetensors"] = {"size": 100}
    with pytest.raises(DownloadError, match=rf"has {len(WEIGHTS)} bytes at the source, which lists it with 100"):
        pull(REPO, store)


def test_what_passes_is_tried_again_and_what_does_not_is_said(repository: LoopbackHub, store: Store) -> None:
    repository.faults["/config.json"] = Fault(times=2, status=503)
    repository.faults[f"/api/models/{REPO}"] = Fault(times=1)
    pull(REPO, store)
    store.remove("org--tiny")
    repository.faults["/config.json"] = Fault(times=-1, status=404)
    with pytest.raises(DownloadError, match=r"127.0.0.1 answered .*config.json with 404"):
        pull(REPO, store)


@pytest.mark.parametrize(("status", "token"), [(401, None), (403, "hf_secret")])
def test_a_gated_repository_says_what_to_do(
    repository: LoopbackHub, store: Store, monkeypatch: pytest.MonkeyPatch, status: int, token: str | None
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    repository.gated[REPO] = status
    expected = "account of this token" if token else "set HF_TOKEN"
    with pytest.raises(
        DownloadError, match=rf"granted by its publisher: ask for it at {repository.url}/{REPO}.*{expected}"
    ):
        pull(REPO, store)


def test_repositories_and_revisions_that_are_not_there(repository: LoopbackHub, store: Store) -> None:
    with pytest.raises(
        DownloadError, match=r"no repository openai/gpt-oss-20c.*HF_TOKEN.*did you mean openai/gpt-oss-20b"
    ):
        pull("openai/gpt-oss-20c", store)
    with pytest.raises(DownloadError, match=r"no revision 'v9'"):
        pull(f"{REPO}@v9", store)
    assert pull(f"{REPO}@v1", store).name == "org--tiny--at--v1"


def test_quantisations(hub: LoopbackHub, store: Store) -> None:
    shards = {f"Q6_K/tiny-Q6_K-0000{i}-of-00002.gguf": b"%d" % i for i in (1, 2)}
    hub.repositories["org/tiny-GGUF"] = {**GGUFS, **shards, "mmproj-F16.gguf": b"eye", "README.md": b""}
    path = pull("org/tiny-GGUF", store)
    assert (path.name, path.parent.name) == ("tiny-Q4_K_M.gguf", "org--tiny-gguf")
    assert pull("org/tiny-gguf:q8_0".replace("gguf", "GGUF", 1), store).read_bytes() == GGUFS["tiny-Q8_0.gguf"]
    path = pull("org/tiny-GGUF:Q6_K", store)
    assert files_in(path.parent) == ["tiny-Q6_K-00001-of-00002.gguf", "tiny-Q6_K-00002-of-00002.gguf"]
    assert path.name == "tiny-Q6_K-00001-of-00002.gguf"
    with pytest.raises(RequestError, match=r"has no Q5_0; its quantisations are: IQ2_XXS, Q4_K_M, Q6_K, Q8_0"):
        pull("org/tiny-GGUF:Q5_0", store)
    del hub.repositories["org/tiny-GGUF"]["tiny-Q4_K_M.gguf"]
    store.remove("org--tiny-gguf")
    with pytest.raises(RequestError, match=r"no Q4_K_M, the default.*: IQ2_XXS, Q6_K, Q8_0"):
        pull("org/tiny-GGUF", store)


@pytest.mark.parametrize("name", ["../../x.safetensors", "a/../../x", "/etc/x", "a\\..\\x", "C:/x", "a\nb", "a//b"])
def test_names_that_leave_their_folder_are_refused(repository: LoopbackHub, store: Store, name: str) -> None:
    repository.repositories[REPO][name] = b"evil"
    with pytest.raises(DownloadError, match=r"could leave its folder"):
        pull(REPO, store)
    assert store.models() == []


def test_pickles_are_refused_by_name(hub: LoopbackHub, store: Store) -> None:
    hub.repositories["org/old"] = {"config.json": b"{}", "pytorch_model.bin": b"", "model.onnx": b""}
    with pytest.raises(DownloadError, match=r"pytorch_model.bin \(pickle\), model.onnx \(ONNX\).*never read"):
        pull("org/old", store)


def test_an_index_that_names_files_that_are_not_there(hub: LoopbackHub, store: Store) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": b"%d" % i for i in (1, 2)}
    index = json.dumps({"weight_map": dict(enumerate(shards))}).encode()
    whole = {"config.json": b"{}", "model.safetensors.index.json": index, **shards, "consolidated.safetensors": b"copy"}
    hub.repositories["org/sharded"] = dict(whole)
    path = pull("org/sharded", store)
    assert files_in(path) == ["config.json", *shards, "model.safetensors.index.json"]
    store.remove("org--sharded")
    del hub.repositories["org/sharded"]["model-00002-of-00002.safetensors"]
    with pytest.raises(DownloadError, match=r"lacks 1 files that its index names.*model-00002"):
        pull("org/sharded", store)


def test_redirects_into_the_network_are_refused(repository: LoopbackHub, store: Store) -> None:
    repository.faults["/config.json"] = Fault(times=-1, redirect="http://169.254.169.254/latest/meta-data")
    with pytest.raises(DownloadError):
        pull(REPO, store)
    repository.faults["/config.json"] = Fault(times=-1, redirect="file:///etc/passwd")
    with pytest.raises(DownloadError, match=r"refused"):
        pull(REPO, store)
    repository.faults["/config.json"] = Fault(times=-1, redirect=f"{repository.url}/{REPO}/resolve/main/config.json")
    with pytest.raises(DownloadError, match=r"more than 5 redirects"):
        pull(REPO, store)


def test_too_little_disk_is_said_before_anything_is_fetched(
    repository: LoopbackHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 64 << 20}))
    with pytest.raises(ResourceError, match=r"pulling org--tiny needs 69.2 MB"):
        pull(REPO, store)
    assert repository.bytes_asked("/model.safetensors") == []


def put_in_cache(repository: dict[str, bytes]) -> Path:
    """As the client itself would: blobs by digest, a snapshot of links, a ref."""
    folder = Path(os.environ["HF_HUB_CACHE"]) / "models--org--tiny"
    for part in ("blobs", f"snapshots/{COMMIT}", "refs"):
        (folder / part).mkdir(parents=True)
    (folder / "refs/main").write_text(COMMIT)
    for name, data in repository.items():
        blob = folder / "blobs" / (sha256(data) if name.endswith((".safetensors", "tokenizer.json")) else git_oid(data))
        blob.write_bytes(data)
        link = folder / "snapshots" / COMMIT / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


def test_what_the_cache_has_is_linked(repository: LoopbackHub, store: Store) -> None:
    folder = put_in_cache({"model.safetensors": WEIGHTS})
    path = pull(REPO, store)
    assert repository.bytes_asked("/model.safetensors") == []
    assert (path / "model.safetensors").samefile(folder / "blobs" / sha256(WEIGHTS))
    assert repository.bytes_asked("/config.json") == [""]


def test_wrong_bytes_in_the_cache_are_fetched(repository: LoopbackHub, store: Store) -> None:
    folder = put_in_cache({"model.safetensors": WEIGHTS})
    (folder / "blobs" / sha256(WEIGHTS)).write_bytes(WEIGHTS[:-1] + b"x")
    notes: list[str] = []
    assert (pull(REPO, store, note=notes.append) / "model.safetensors").read_bytes() == WEIGHTS
    assert "fetched instead" in notes[0]


def test_another_file_system_gets_symbolic_links(
    repository: LoopbackHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put_in_cache(dict(CHECKPOINT))
    monkeypatch.setattr("os.link", lambda *paths: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    path = pull(REPO, store)
    blob = folder / "blobs" / sha256(WEIGHTS)
    assert os.readlink(path / "model.safetensors") == str(blob)
    blob.unlink()
    [model] = store.models()
    assert "cannot be read" in (model.problem or "")
    assert (pull(REPO, store) / "model.safetensors").read_bytes() == WEIGHTS


def test_offline_only_the_cache_is_asked(
    repository: LoopbackHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE is set, and the cache at .* has no org/tiny"):
        pull(REPO, store)
    folder = put_in_cache(dict(CHECKPOINT))
    path = pull(REPO, store)
    assert files_in(path) == WANTED
    assert repository.requests == []
    manifest = store.models()[0].manifest
    assert manifest is not None
    assert manifest.revision == COMMIT
    store.remove("org--tiny")
    (folder / "blobs" / sha256(WEIGHTS)).write_bytes(b"x" * len(WEIGHTS))
    with pytest.raises(DownloadError, match=r"SHA-256 .* instead of"):
        pull(REPO, store)


def test_a_hub_that_cannot_be_reached_leaves_the_cache(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:9 cannot be reached"):
        pull(REPO, store)
    put_in_cache(dict(CHECKPOINT))
    notes: list[str] = []
    assert files_in(pull(REPO, store, note=notes.append)) == WANTED
    assert "from the cache" in notes[0]


def test_a_snapshot_that_leads_out_of_the_cache_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = put_in_cache(dict(CHECKPOINT))
    (tmp_path / "secret").write_bytes(b"secret")
    link = folder / "snapshots" / COMMIT / "config.json"
    link.unlink()
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(DownloadError, match=r"leads out of the cache"):
        pull(REPO, store)
