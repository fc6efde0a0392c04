"""The GGUF reader: agrees with PyPI `gguf` on good files, and refuses bad ones quickly, clearly and without memory."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import FreeholdError, ModelFileError, NotFoundError, UnsupportedError
from freehold.formats import FORMATS
from freehold.weights.gguf import GGUFFile
from gguf_files import entry, gguf_bytes, pair, string, u32, u64, write_gguf

STRING, ARRAY, BOOL = 8, 9, 7
FOUR = np.arange(4, dtype=np.float32).tobytes()


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    kinds = gguf.GGMLQuantizationType
    tensors = {
        "vector": rng.standard_normal(64).astype(np.float32),
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "brain": (rng.standard_normal((4, 6)).astype(np.float32), kinds.BF16),
        "cube": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "q4": (rng.standard_normal((8, 64)).astype(np.float32), kinds.Q4_1),
        "q8": (rng.standard_normal((5, 32)).astype(np.float32), kinds.Q8_0),
    }
    return write_gguf(tmp_path / "good.gguf", tensors, words=["a", "", "Ġü👋"], flag=True, n=7, x=0.5, ids=[3, -1, 5])


def test_reads_what_gguf_wrote(good: Path) -> None:
    reference = gguf.GGUFReader(good)
    file = GGUFFile(good)
    assert {theirs.name for theirs in reference.tensors} == set(file.names)
    for theirs in reference.tensors:
        ours = file.get(theirs.name)
        assert ours.format.name == theirs.tensor_type.name
        assert ours.shape == tuple(int(size) for size in reversed(theirs.shape))
        np.testing.assert_array_equal(ours.data.reshape(-1), theirs.data.view(np.uint8).reshape(-1))
        expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
        np.testing.assert_array_equal(ours.to_float32(), expected.reshape(ours.shape))
    assert file.n_bytes == sum(int(theirs.n_bytes) for theirs in reference.tensors)


def test_metadata_values_have_plain_types(good: Path) -> None:
    metadata = GGUFFile(good).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["words"] == ("a", "", "Ġü👋")
    assert metadata["flag"] is True
    assert (type(metadata["n"]), metadata["n"]) == (int, 7)
    assert (type(metadata["x"]), metadata["x"]) == (float, 0.5)
    assert metadata["ids"].tolist() == [3, -1, 5]
    assert not metadata["ids"].flags.writeable


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (0, b"\xff", 255), (1, b"\xff", -1), (2, b"\xff\xff", 65535), (3, b"\xff\xff", -1), (4, b"\xff" * 4, 2**32 - 1),
        (5, b"\xff" * 4, -1), (6, b"\0\0\x80\x3f", 1.0), (7, b"\0", False), (8, string("é"), "é"),
        (10, b"\xff" * 8, 2**64 - 1), (11, b"\xff" * 8, -1), (12, b"\0" * 6 + b"\xf0\x3f", 1.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", [2, 3])
def test_every_value_type(tmp_path: Path, kind: int, data: bytes, expected: object, version: int) -> None:
    pairs = [
        pair("one", kind, data),
        pair("two", ARRAY, u32(kind) + u64(2) + data * 2),
        pair("none", ARRAY, u32(kind) + u64(0)),
    ]
    metadata = GGUFFile(save(tmp_path / "a.gguf", gguf_bytes(pairs, version=version))).metadata
    assert metadata["one"] == expected
    assert type(metadata["one"]) is type(expected)
    assert list(metadata["two"]) == [expected, expected]
    assert len(metadata["none"]) == 0


def test_tensors_are_in_the_order_of_their_bytes_and_may_have_gaps(tmp_path: Path) -> None:
    entries = [entry("late", [4], offset=96), entry("early", [2, 2], offset=0)]
    file = GGUFFile(save(tmp_path / "a.gguf", gguf_bytes([], entries, FOUR + bytes(80) + FOUR)))
    assert file.names == ("early", "late")
    assert file.get("early").to_float32().tolist() == [[0, 1], [2, 3]]
    assert file.get("late").to_float32().tolist() == [0, 1, 2, 3]


def test_alignment_key_moves_the_data(tmp_path: Path) -> None:
    pairs = [pair("general.alignment", 4, u32(256))]
    data = gguf_bytes(pairs, [entry("t", [4])], FOUR, alignment=256)
    assert GGUFFile(save(tmp_path / "a.gguf", data)).get("t").to_float32().tolist() == [0, 1, 2, 3]


def test_tensors_outlive_the_file_and_its_pages(good: Path) -> None:
    file = GGUFFile(good)
    taken = file.get("q8")
    before = taken.to_float32()
    for name in file.names:
        file.release(name)
    file.close()
    file.close()
    np.testing.assert_array_equal(taken.to_float32(), before)
    assert not taken.data.flags.writeable


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux to see resident pages")
def test_release_drops_the_pages_and_they_can_be_read_again(tmp_path: Path) -> None:
    numbers = np.arange(1 << 18, dtype=np.float32)
    path = write_gguf(tmp_path / "a.gguf", {"big": numbers})
    file = GGUFFile(path)
    taken = file.get("big")
    np.testing.assert_array_equal(taken.to_float32(), numbers)
    assert resident_kib(path) >= 1024
    file.release("big")
    assert resident_kib(path) <= 32
    np.testing.assert_array_equal(taken.to_float32(), numbers)


def resident_kib(path: Path) -> int:
    """Resident memory of this process's map of the file."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if line.endswith(str(path)))
    return int(next(line for line in lines if line.startswith("Rss:")).split()[1])


def test_an_unknown_tensor_is_not_found(good: Path) -> None:
    file = GGUFFile(good)
    for method in (file.get, file.release, file.span):
        with pytest.raises(NotFoundError, match="'absent'"):
            method("absent")


def value(kind: int, data: bytes) -> bytes:
    return gguf_bytes([pair("k", kind, data)])


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return value(ARRAY, u32(kind) + u64(count) + data)


def alignment(kind: int, data: bytes) -> bytes:
    return gguf_bytes([pair("general.alignment", kind, data)])


def tensor(dims: list[int], kind: int = 0, data: bytes = FOUR, **claims: int) -> bytes:
    return gguf_bytes([], [entry("t", dims, kind, **claims)], data)


HUGE = 1 << 62
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "magic": (gguf_bytes(magic=b"GGML"), r"begins with b'GGML'.*byte 0"),
    "short": (b"GG", r"magic takes 4 bytes, but the file ends after 2"),
    "no version": (b"GGUF\x03", r"version takes 4 bytes.*byte 4"),
    "tensor count": (gguf_bytes(n_tensors=HUGE), r"tensor count is \d+; expected at most.*byte 8"),
    "key count": (gguf_bytes(n_keys=HUGE), r"metadata count is \d+; expected at most.*byte 16"),
    "counts beyond the file": (gguf_bytes(n_keys=60000, n_tensors=30000), r"60000 keys, 30000 tensors takes"),
    "key length": (gguf_bytes([u64(HUGE) + bytes(16)]), r"key 0.*name is \d+ bytes long; expected at most 65535"),
    "key beyond the file": (
        gguf_bytes([u64(60000) + bytes(16)]),
        r"name takes 60000 bytes, but the file ends after 16",
    ),
    "key not UTF-8": (value(0, b"1").replace(b"k", b"\xff"), r"metadata key 0.*not UTF-8"),
    "duplicate key": (gguf_bytes([pair("k", 0, b"1")] * 2), r"'k': the key occurs twice \(at byte 38\)"),
    "value type": (value(13, bytes(16)), r"'k': the value type is 13; expected 0 to 12"),
    "number beyond the file": (value(12, bytes(7)), r"'k': the value takes 8 bytes, but the file ends after 7"),
    "boolean": (value(BOOL, b"\x02"), r"'k': a boolean is 2"),
    "boolean in array": (array(BOOL, 3, b"\0\1\7"), r"'k': a boolean is 7"),
    "string length": (value(STRING, u64(HUGE)), r"'k': the value is \d+ bytes long"),
    "string beyond the file": (value(STRING, u64(99) + b"x"), r"'k': the value takes 99 bytes"),
    "string not UTF-8": (value(STRING, string(b"\xc3")), r"'k': the value is not UTF-8"),
    "element type": (array(99, 1, bytes(8)), r"'k': the element type is 99"),
    "array length": (array(4, HUGE, bytes(8)), r"'k': the value takes \d+ bytes"),
    "array product": (array(12, (1 << 61) + 1, bytes(8)), r"'k': the value takes \d+ bytes"),
    "string count": (array(STRING, HUGE), r"'k': the array holds \d+ strings; expected at most"),
    "string count and file": (array(STRING, 1000), r"'k': the array of 1000 strings takes 8000 bytes"),
    "string in array": (
        array(STRING, 2, string("ok") + u64(HUGE) + bytes(32)),
        r"'k': the string 1 takes \d+ bytes.*at byte 59",
    ),
    "length in array": (array(STRING, 2, string("123456789") + bytes(3)), r"'k': the string 1 takes 8 bytes"),
    "array not UTF-8": (array(STRING, 1, string(b"\xff")), r"'k': string 0 is not UTF-8"),
    "alignment 0": (alignment(4, u32(0)), r"'general.alignment': the value is 0"),
    "alignment 24": (alignment(4, u32(24)), r"'general.alignment': the value is 24; expected a power of two"),
    "alignment text": (alignment(STRING, string("32")), r"'general.alignment': the value is '32'"),
    "alignment boolean": (alignment(BOOL, b"\1"), r"'general.alignment': the value is True"),
    "name length": (gguf_bytes([], [entry("n" * 300, [4])], FOUR), r"tensor 0.*name is 300 bytes long"),
    "duplicate tensor": (
        gguf_bytes([], [entry("t", [4]), entry("t", [4], offset=32)], bytes(64)),
        r"'t': the tensor name occurs twice",
    ),
    "no dimensions": (tensor([], n_dims=0), r"'t': the number of dimensions is 0; expected 1 to 4"),
    "dimensions": (tensor([1] * 5), r"'t': the number of dimensions is 5"),
    "claimed dimensions": (tensor([4], n_dims=2**32 - 1), r"dimensions is 4294967295"),
    "zero dimension": (tensor([4, 0]), r"'t': the shape is \(0, 4\)"),
    "overflow": (tensor([1 << 32, 1 << 32, 1]), r"a product below 2\^63"),
    "tensor type": (tensor([4], kind=4), r"'t': the tensor type 4 is unknown"),
    "row length": (tensor([33], kind=8, data=bytes(64)), r"'t': the rows have 33 numbers; Q8_0 needs a multiple of 32"),
    "offset": (tensor([4], offset=16), r"'t': the offset is 16; expected a multiple of 32"),
    "offset beyond the file": (tensor([4], offset=1 << 60), r"'t': the tensor ends at byte \d+"),
    "truncated": (tensor([4], data=FOUR[:-1]), r"'t': the tensor ends at byte 80, the file at 79.*byte 64"),
    "too long for the file": (tensor([1 << 40]), r"'t': the tensor ends at byte"),
    "overlap": (
        gguf_bytes([], [entry("a", [16]), entry("b", [4], offset=32)], bytes(64)),
        r"'b': the tensor begins inside 'a', which ends at byte 160",
    ),
    "same place": (gguf_bytes([], [entry("a", [4]), entry("b", [4])], FOUR), r"begins inside 'a'"),
    "no data": (tensor([4], data=b""), r"'t': the tensor ends at byte"),
}


@pytest.mark.parametrize(("data", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_refuses_quickly_and_without_memory(tmp_path: Path, data: bytes, message: str) -> None:
    path = save(tmp_path / "bad.gguf", data)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(ModelFileError, match=message) as caught:
            GGUFFile(path)
        seconds = time.perf_counter() - started
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 1
    assert peak < 4 << 20
    assert str(path) in str(caught.value)
    assert "at byte" in str(caught.value)
    assert "\n" not in str(caught.value)


UNSUPPORTED_FILES: dict[str, tuple[bytes, str]] = {
    "big-endian": (b"GGUF" + (3).to_bytes(4, "big") + bytes(16), "big-endian"),
    "version 1": (gguf_bytes(version=1), "version is 1; Freehold reads versions 2 and 3"),
    "version 4": (gguf_bytes(version=4), "version is 4"),
    "nested array": (array(ARRAY, 1, bytes(32)), "'k': the value is an array of arrays"),
    "IQ2_XXS": (tensor([256], kind=16, data=bytes(66)), "'t': the type is IQ2_XXS; Freehold reads F32"),
}


@pytest.mark.parametrize(("data", "message"), UNSUPPORTED_FILES.values(), ids=UNSUPPORTED_FILES.keys())
def test_names_what_it_does_not_implement(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        GGUFFile(save(tmp_path / "a.gguf", data))


def test_every_ggml_type_is_read_or_named(tmp_path: Path) -> None:
    for kind in gguf.GGMLQuantizationType:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        path = save(tmp_path / f"{kind.name}.gguf", gguf_bytes([], [entry("t", [block], kind=kind)], bytes(size)))
        if kind.name in FORMATS:
            assert GGUFFile(path).get("t").format is FORMATS[kind.name]
        else:
            with pytest.raises(UnsupportedError, match=kind.name):
                GGUFFile(path)


def test_a_header_that_goes_on_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.weights.gguf._MAX_HEADER_BYTES", 1000)
    data = array(STRING, 100, string("abcdefgh") * 100)
    with pytest.raises(ModelFileError, match="'k': the string 59 takes 16 bytes; a whole header may take 1,000"):
        GGUFFile(save(tmp_path / "a.gguf", data))


def test_strings_are_counted_over_all_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.weights.gguf._MAX_STRINGS", 5)
    pairs = [pair(key, ARRAY, u32(STRING) + u64(3) + string("") * 3) for key in ("a", "b")]
    with pytest.raises(ModelFileError, match="'b': the array holds 3 strings; expected at most 5 in all"):
        GGUFFile(save(tmp_path / "a.gguf", gguf_bytes(pairs)))


def test_missing_empty_and_strange_files(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        GGUFFile(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="is empty"):
        GGUFFile(save(tmp_path / "empty.gguf", b""))
    with pytest.raises(ModelFileError, match="is not a regular file"):
        GGUFFile(tmp_path)
    with pytest.raises(ModelFileError, match="git lfs pull"):
        GGUFFile(save(tmp_path / "lfs.gguf", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"))


def test_long_names_do_not_flood_the_message(tmp_path: Path) -> None:
    data = gguf_bytes([pair("k\n" * 20000, 13, b"")])
    with pytest.raises(ModelFileError) as caught:
        GGUFFile(save(tmp_path / "a.gguf", data))
    assert len(str(caught.value)) < 500 + len(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def seed_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("fuzz") / "seed.gguf"
    numbers = np.arange(64, dtype=np.float32)
    tensors = {"a": numbers, "b": (numbers.reshape(2, 32), gguf.GGMLQuantizationType.Q8_0)}
    write_gguf(path, tensors, words=["x", "yz"], ids=[1, 2], flag=True, general__alignment=32)
    return path, path.read_bytes()


EDITS = st.lists(
    st.tuples(
        st.integers(0, 2000), st.one_of(st.binary(min_size=1, max_size=2), st.sampled_from([b"\xff" * 8, b"\0" * 8]))
    ),
    max_size=4,
)


@settings(max_examples=400, deadline=None)
@given(edits=EDITS, cut=st.integers(0, 400), use_cut=st.booleans())
def test_mutations_load_or_are_refused(
    seed_file: tuple[Path, bytes], edits: list[tuple[int, bytes]], cut: int, use_cut: bool
) -> None:
    path, seed = seed_file
    data = bytearray(seed)
    for position, replacement in edits:
        at = position % len(data)
        data[at : at + len(replacement)] = replacement
    mutated = path.with_name("mutated.gguf")
    mutated.write_bytes(data[: len(data) - cut % len(data)] if use_cut else data)
    with contextlib.suppress(FreeholdError):  # anything else it raises is a bug
        file = GGUFFile(mutated)
        for name in file.names:
            assert file.get(name).to_float32().size > 0
        file.close()


def test_every_truncation_is_refused(seed_file: tuple[Path, bytes]) -> None:
    path, seed = seed_file
    cut_file = path.with_name("cut.gguf")
    data_end = max(GGUFFile(path).span(name).stop for name in ("a", "b"))
    for length in range(1, data_end):
        cut_file.write_bytes(seed[:length])
        with pytest.raises(ModelFileError):
            GGUFFile(cut_file)
