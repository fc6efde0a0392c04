"""GGUF models in parts: the same as in one file, and one clear line for parts that do not belong together."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import FreeholdError, ModelFileError, NotFoundError, UnsupportedError
from freehold.models import load_model
from freehold.weights import open_checkpoint
from freehold.weights.gguf_parts import GGUFParts, part_paths
from gguf_files import entry, gguf_bytes, pair, string, u32, write_gguf
from gguf_split import part_name, save_split, split_bytes, split_pairs
from golden_models import expected_of, step
from qwen_files import save_gguf

KINDS = gguf.GGMLQuantizationType
OWN = [pair("general.architecture", 8, string("llama")), pair("general.alignment", 4, u32(64))]
FOUR = np.arange(4, dtype=np.float32).tobytes()


def part(no: int, pairs: list[bytes] | None = None, names: tuple[str, ...] | None = None, count: int = 3) -> bytes:
    """A good part of three with a tensor `t1`, `t2`, `t3`, or what is said in place of it."""
    keys = split_pairs(no, count, 3) if pairs is None else pairs
    names = (f"t{no + 1}",) if names is None else names
    alignment = 32 if no else 64
    entries = [entry(name, [4], offset=alignment * index) for index, name in enumerate(names)]
    data = b"".join(FOUR.ljust(alignment, b"\0") for _ in names)
    return gguf_bytes([*OWN, *keys] if no == 0 else keys, entries, data, alignment=alignment)


def save_parts(directory: Path, changes: dict[int, bytes | None] | None = None) -> list[Path]:
    """Three good parts, apart from the changes; None leaves one out."""
    paths = [directory / part_name("m", no, 3) for no in range(3)]
    for no, path in enumerate(paths):
        data = (changes or {}).get(no, part(no))
        if data is not None:
            path.write_bytes(data)
    return paths


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gguf(tmp_path_factory.mktemp("whole") / "a.gguf", "qwen3", KINDS.BF16)


@pytest.mark.parametrize("empty_first", [False, True], ids=["split", "no-tensor-first-split"])
def test_any_part_opens_all(tmp_path: Path, whole: Path, empty_first: bool) -> None:
    paths = save_split(whole, tmp_path / "model", "a-Q4_K_M", 4, empty_first=empty_first)
    (tmp_path / "model" / "notes.txt").touch()
    with open_checkpoint(whole) as expected:
        words: list[str | Path] = [*paths, tmp_path / "model", str(paths[1])]
        for path in words:
            with open_checkpoint(path) as ours:
                assert (ours.kind, ours.names, ours.n_bytes) == ("gguf", expected.names, expected.n_bytes)
                assert ours.config == expected.config
                assert ours.path == paths[0]
                for name in ours.names:
                    assert ours.shape(name) == expected.shape(name)
                    np.testing.assert_array_equal(ours.get(name).data, expected.get(name).data)
                    ours.release(name)
        assert ours.gguf_metadata is not None
        assert expected.gguf_metadata is not None
        own = {key: value for key, value in ours.gguf_metadata.items() if not key.startswith("split.")}
        np.testing.assert_equal(own, dict(expected.gguf_metadata))


def test_logits_are_those_of_the_whole_file(tmp_path: Path, whole: Path) -> None:
    ids = expected_of("qwen3")["input_ids"]
    logits = []
    for path in (whole, save_split(whole, tmp_path, "a", 3)[2]):
        with open_checkpoint(path) as checkpoint:
            model = load_model(checkpoint, precision="reference")
        logits.append(step(model, ids, 0, model.new_kv(8)))
    np.testing.assert_array_equal(logits[0], logits[1])


@pytest.mark.parametrize("small_first", [False, True])
def test_parts_of_another_writer(tmp_path: Path, small_first: bool) -> None:
    """PyPI `gguf` splits what it writes."""
    tensors = {f"t{index}": np.full((2, 32), index, np.float32) for index in range(7)}
    path = tmp_path / "m.gguf"
    write_gguf(path, tensors, split=3, small_first=small_first)
    paths = sorted(tmp_path.iterdir())
    assert [found.name for found in paths] == [part_name("m", no, len(paths)) for no in range(3 + small_first)]
    parts = GGUFParts(paths[-1])
    assert parts.names == tuple(tensors)
    assert parts.metadata["general.architecture"] == "llama"
    assert parts.n_bytes == 7 * 2 * 32 * 4
    for name, numbers in tensors.items():
        np.testing.assert_array_equal(parts.get(name).to_float32(), numbers)


def test_each_part_has_its_own_alignment(tmp_path: Path) -> None:
    parts = GGUFParts(save_parts(tmp_path)[1])
    assert parts.names == ("t1", "t2", "t3")
    assert parts.span("t1").start % 64 == 0
    taken = [parts.get(name) for name in parts.names]
    for name in parts.names:
        parts.release(name)
    parts.close()
    parts.close()
    assert all(tensor.to_float32().tolist() == [0, 1, 2, 3] for tensor in taken)
    for method in (parts.get, parts.span, parts.release):
        with pytest.raises(NotFoundError, match=r"m-00001-of-00003\.gguf has no tensor 't4'"):
            method("t4")


def test_links_are_followed_as_those_of_one_file_are(tmp_path: Path) -> None:
    """Hugging Face's cache has a folder of links to files named by digest."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for no, path in enumerate(save_parts(tmp_path)):
        path.rename(tmp_path / "blobs" / f"{no:064}")
        (tmp_path / "snapshot" / path.name).symlink_to(tmp_path / "blobs" / f"{no:064}")
    assert len(GGUFParts(tmp_path / "snapshot" / part_name("m", 1, 3)).names) == 3
    (tmp_path / "blobs" / f"{2:064}").unlink()
    with pytest.raises(NotFoundError, match="1 of the 3 parts of this model are missing beside it: 'm-00003-of-00003"):
        GGUFParts(tmp_path / "snapshot" / part_name("m", 1, 3))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    paths = save_parts(tmp_path, {0: None, 2: None})
    wanted = (
        r"00002-of-00003\.gguf: 2 of the 3 parts .*: 'm-00001-of-00003\.gguf', 'm-00003-of-00003\.gguf'; fetch them"
    )
    for path in (paths[1], tmp_path):
        with pytest.raises(NotFoundError, match=wanted):
            open_checkpoint(path)
    with pytest.raises(NotFoundError, match=r"00001-of-00003\.gguf' does not exist"):
        open_checkpoint(paths[0])
    lonely = tmp_path / "x-00007-of-01000.gguf"
    lonely.write_bytes(part(0))
    with pytest.raises(NotFoundError, match=r"999 of the 1000 parts .*'x-00005-of-01000\.gguf' and 994 more;"):
        GGUFParts(lonely)


def test_other_models_beside_the_parts(tmp_path: Path) -> None:
    paths = save_parts(tmp_path)
    for name in ("n-00001-of-00003.gguf", "m-00001-of-00002.gguf", "mmproj.gguf"):
        other = Path(shutil.copy(paths[0], tmp_path / name))
        with pytest.raises(NotFoundError, match="holds 4 GGUF files; name one of them"):
            open_checkpoint(tmp_path)
        assert len(GGUFParts(paths[2]).names) == 3
        other.unlink()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({1: part(2)}, r"00002-of-00003\.gguf: split.no is 2; expected 1, as its name says"),
        ({0: part(0, split_pairs(1, 3, 3))}, r"00001-of-00003\.gguf: split.no is 1; expected 0"),
        ({2: part(2, split_pairs(2, 4, 3))}, r"00003-of-00003\.gguf: split.count is 4; expected 3, as its name says"),
        ({0: part(0, split_pairs(0, 65535, 3))}, r"split.count is 65535; expected 3"),
        ({0: part(0, [])}, r"00001-of-00003\.gguf: there is no split.count; expected 3"),
        ({1: part(1, split_pairs(1, 3, 3)[1:])}, r"there is no split.no; expected 1"),
        ({0: part(0, split_pairs(0, 3, 3)[:2])}, r"there is no split.tensors.count; expected a number from 1"),
        ({0: part(0, split_pairs(0, 3, -1))}, r"split.tensors.count is -1; expected a number"),
        ({0: part(0, split_pairs(0, 3, 2**31 - 1))}, r"split.tensors.count is 2147483647; expected a number"),
        ({1: part(1, split_pairs(1, 3, 4))}, r"split.tensors.count is 4; expected 3, as m-00001-of-00003.gguf says"),
        ({1: part(1, names=())}, r"the 3 parts hold 2 tensors, but split.tensors.count is 3: some are of another"),
        ({1: part(1, names=("t2", "t4"))}, r"the 3 parts hold 4 tensors"),
        ({2: part(2, names=("t1",))}, r"00003-of-00003\.gguf holds the tensor 't1', as m-00001-of-00003\.gguf does"),
        ({1: part(1, [*OWN[:1], *split_pairs(1, 3, 3)])}, None),
        (
            {1: part(1, [pair("general.architecture", 8, string("qwen3")), *split_pairs(1, 3, 3)])},
            r"00002-of-00003\.gguf: 'general.architecture' is 'qwen3', but m-00001-of-00003\.gguf does not say so",
        ),
        ({1: part(1, [pair("llama.block_count", 4, u32(3)), *split_pairs(1, 3, 3)])}, "'llama.block_count' is 3, but"),
        ({1: part(1, [pair("split.no", 8, string("1")), *split_pairs(1, 3, 3)[1:]])}, "split.no is '1'; expected 1"),
        ({0: part(0, [pair("split.count", 6, u32(0)), *split_pairs(0, 3, 3)[::2]])}, r"split.count is 0.0; expected 3"),
        ({1: b"GGUF"}, r"00002-of-00003\.gguf: .* it is truncated"),
        ({1: b""}, r"00002-of-00003\.gguf is empty"),
        ({2: part(2)[:-1]}, None),  # padding only
        ({2: part(2)[:-30]}, r"00003-of-00003\.gguf: 't3': the tensor ends at byte \d+, the file at \d+: it is trunc"),
    ],
)  # fmt: skip
def test_refuses_parts_that_do_not_belong_together(
    tmp_path: Path, changes: dict[int, bytes | None], message: str | None
) -> None:
    path = save_parts(tmp_path, changes)[0]
    if message is None:
        assert GGUFParts(path).names == ("t1", "t2", "t3")
        return
    with pytest.raises(ModelFileError, match=message) as caught:
        GGUFParts(path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_arrays_that_a_later_part_repeats(tmp_path: Path) -> None:
    def array(*numbers: int) -> bytes:
        return pair("a.sizes", 9, u32(4) + len(numbers).to_bytes(8, "little") + b"".join(map(u32, numbers)))

    first = part(0, [array(1, 2), *split_pairs(0, 3, 3)])
    same, other = (part(1, [array(1, last), *split_pairs(1, 3, 3)]) for last in (2, 3))
    assert GGUFParts(save_parts(tmp_path, {0: first, 1: same})[0]).names == ("t1", "t2", "t3")
    with pytest.raises(ModelFileError, match=r"'a.sizes' is array\(\[1, 3\]"):
        GGUFParts(save_parts(tmp_path, {0: first, 1: other})[0])


@pytest.mark.parametrize(
    "name",
    ["m.gguf", "m-1-of-3.gguf", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-00001-of-99999.gguf", "blob"],
)
def test_a_part_under_another_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(part(0))
    with pytest.raises(ModelFileError, match=r"split.count is 3, so this is one part of several, but its name does"):
        GGUFParts(path)


@pytest.mark.parametrize("count", [None, 0, 1])
@pytest.mark.parametrize("name", ["m.gguf", "m-00001-of-00001.gguf"])
def test_a_series_of_one(tmp_path: Path, name: str, count: int | None) -> None:
    path = tmp_path / name
    path.write_bytes(part(0, [] if count is None else split_pairs(0, count, 1)))
    assert GGUFParts(path).names == ("t1",)


def test_what_is_not_implemented_in_a_later_part(tmp_path: Path) -> None:
    strange = gguf_bytes(split_pairs(1, 3, 3), [entry("t2", [256], 16)], bytes(66))
    with pytest.raises(UnsupportedError, match=r"00002-of-00003\.gguf: 't2': the type is IQ2_XXS"):
        GGUFParts(save_parts(tmp_path, {1: strange})[0])


def test_nothing_stays_open_after_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Path] = []
    monkeypatch.setattr("freehold.weights.gguf.GGUFFile.close", lambda file: closed.append(file.path))
    paths = save_parts(tmp_path, {2: part(2, names=("t1",))})
    with pytest.raises(ModelFileError):
        GGUFParts(paths[1])
    assert closed == paths


def test_too_many_open_files_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, mapped = save_parts(tmp_path), mmap.mmap

    def limited(fd: int, *args: Any, **options: Any) -> mmap.mmap:
        if os.fstat(fd).st_ino == paths[2].stat().st_ino:
            raise OSError(errno.EMFILE, "Too many open files")
        return mapped(fd, *args, **options)

    monkeypatch.setattr("freehold.weights.mapping.mmap.mmap", limited)
    with pytest.raises(ModelFileError, match=r"00003-of-00003\.gguf cannot be read: .*Too many open files"):
        GGUFParts(paths[0])


@given(
    st.integers(0, 200),
    st.sampled_from([0, 1, 2, 77, 200, 2000, 99999]),
    st.integers(1, 6),
    st.text("m-of0.", min_size=1, max_size=9),
)
@settings(max_examples=60, deadline=None)
def test_names_of_parts(number: int, count: int, width: int, stem: str) -> None:
    path = Path("d") / f"{stem}-{number:0{width}}-of-{count:0{width}}.gguf"
    found = part_paths(path)
    assert path in found
    assert len(set(found)) == len(found) == (count if len(found) > 1 else 1)
    assert {other.parent for other in found} == {Path("d")}
    assert part_paths(found[0]) == part_paths(found[-1]) == found


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damage_raises_nothing_but_errors_of_ours(
    tmp_path_factory: pytest.TempPathFactory, small: list[bytes], data: st.DataObject
) -> None:
    no = data.draw(st.integers(0, len(small) - 1))
    wrong = bytearray(small[no])
    for _ in range(data.draw(st.integers(1, 3))):
        wrong[data.draw(st.integers(0, len(wrong) - 1))] = data.draw(st.integers(0, 255))
    directory = tmp_path_factory.mktemp("damaged")
    for index, content in enumerate(small):
        (directory / part_name("m", index, len(small))).write_bytes(bytes(wrong) if index == no else content)
    with contextlib.suppress(FreeholdError):
        GGUFParts(directory / part_name("m", 0, len(small))).close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Two parts of three tensors."""
    path = write_gguf(tmp_path_factory.mktemp("small") / "a.gguf", {f"t{i}": np.zeros(4, np.float32) for i in range(3)})
    return split_bytes(path, 2)
