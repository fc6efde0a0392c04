"""The safetensors reader: the golden checkpoint opens, and no malformed header does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import FreeholdError, ModelFileError, NotFoundError, UnsupportedError
from freehold.formats import FORMATS
from freehold.weights.safetensors import INDEX_NAME, SafetensorsFile, SafetensorsShards

GOLDEN = Path(__file__).parents[1] / "golden" / "llama"


def tensor(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_bytes(header: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_reads_the_golden_checkpoint() -> None:
    file = SafetensorsFile(GOLDEN / "model.safetensors")
    assert len(file.names) == 29
    assert file.metadata == {"format": "pt"}
    embedding = file.get("model.embed_tokens.weight")
    assert embedding.format is FORMATS["BF16"]
    assert embedding.shape == (512, 192)
    assert embedding.to_float32().std() == pytest.approx(4 / 192**0.5, rel=0.02)  # as its generator drew it
    assert file.n_bytes == sum(file.get(name).n_bytes for name in file.names)


def test_values_shapes_and_order(tmp_path: Path) -> None:
    numbers = np.arange(6, dtype=np.float32)
    header = {
        "second": tensor(24, 30, [3], "F16"),
        "__metadata__": {"a": "b"},
        "first": tensor(0, 24, [1, 2, 3]),
        "scalar": tensor(30, 34, []),
        "nothing": tensor(24, 24, [0, 7]),
    }
    data = numbers.tobytes() + numbers[:3].astype(np.float16).tobytes() + numbers[5:].tobytes()
    file = SafetensorsFile(save(tmp_path / "a.safetensors", file_bytes(header, data)))
    assert file.names == ("first", "nothing", "second", "scalar")
    np.testing.assert_array_equal(file.get("first").to_float32(), numbers.reshape(1, 2, 3))
    np.testing.assert_array_equal(file.get("second").to_float32(), numbers[:3])
    assert file.get("scalar").to_float32() == 5
    assert file.get("nothing").to_float32().shape == (0, 7)
    assert file.metadata == {"a": "b"}
    file.release("first")
    file.close()


@pytest.mark.parametrize(
    ("dtype", "n_bytes"), [("U8", 8), ("F8_E5M2", 8), ("I64", 64), ("F4", 4), ("BOOL", 8), ("C64", 64)]
)
def test_other_dtypes_are_listed_but_not_read(tmp_path: Path, dtype: str, n_bytes: int) -> None:
    data = file_bytes({"t": tensor(0, n_bytes, [2, 4], dtype)}, bytes(n_bytes))
    file = SafetensorsFile(save(tmp_path / "a.safetensors", data))
    assert file.span("t").dtype == dtype
    assert file.span("t").shape == (2, 4)
    with pytest.raises(UnsupportedError, match=f"'t' is stored as {dtype}.*it reads F32, F16, BF16"):
        file.get("t")


def test_an_unknown_tensor_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="has no tensor 'absent'"):
        SafetensorsFile(GOLDEN / "model.safetensors").get("absent")


ONE = bytes(4)
DUPLICATE = (
    b'{"t": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "t": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
)
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "too short": (b"1234567", "has 7 bytes; a safetensors file has at least 8"),
    "huge header": (b"\xff" * 8 + b"{}", r"claims a header of \d+ bytes; expected at most 100,000,000"),
    "long header": (b"\x40" + bytes(7) + b"{}", "claims a header of 64 bytes, but only 2 follow"),
    "not JSON": (file_bytes(b"{'a'"), "is not valid JSON"),
    "not UTF-8": (file_bytes(b'{"\xff": 1}'), "is not valid JSON"),
    "not an object": (file_bytes(b"[1]"), "holds a JSON list; expected an object"),
    "deep": (file_bytes(b"[" * 100_000), "is nested too deeply"),
    "long number": (file_bytes(b'{"t": ' + b"9" * 5000 + b"}"), "is not valid JSON|'t' is not described"),
    "NaN": (file_bytes(b'{"t": NaN}'), "NaN is not a JSON number"),
    "duplicate name": (file_bytes(DUPLICATE, ONE), "the key 't' occurs twice"),
    "metadata list": (file_bytes({"__metadata__": ["a"]}), "__metadata__ is not an object of strings"),
    "metadata number": (file_bytes({"__metadata__": {"a": 1}}), "__metadata__ is not an object of strings"),
    "entry list": (file_bytes({"t": []}), "'t' is not described by exactly"),
    "missing field": (file_bytes({"t": {"dtype": "F32", "shape": []}}), "'t' is not described by exactly"),
    "extra field": (file_bytes({"t": tensor(0, 4, [1]) | {"x": 1}}, ONE), "'t' is not described by exactly"),
    "unknown dtype": (file_bytes({"t": tensor(0, 4, [1], "F99")}, ONE), "'t' has the unknown dtype 'F99'"),
    "dtype list": (file_bytes({"t": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}, ONE), "unknown dtype"),
    "shape number": (
        file_bytes({"t": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, ONE),
        "a shape that is not",
    ),
    "shape float": (file_bytes({"t": tensor(0, 4, [1.0])}, ONE), "a shape that is not"),
    "shape boolean": (file_bytes({"t": tensor(0, 4, [True])}, ONE), "a shape that is not"),
    "shape negative": (file_bytes({"t": tensor(0, 4, [-1])}, ONE), "a shape that is not"),
    "shape huge": (file_bytes({"t": tensor(0, 4, [1 << 63])}, ONE), "a shape that is not"),
    "shape long": (file_bytes({"t": tensor(0, 4, [1] * 9)}, ONE), "a shape that is not a list of at most 8"),
    "overflow": (file_bytes({"t": tensor(0, 4, [1 << 62] * 8)}, ONE), "which is .* bits, but data_offsets of 4 bytes"),
    "offsets backwards": (file_bytes({"t": tensor(4, 0, [1])}, ONE), "data_offsets that are not"),
    "offsets three": (
        file_bytes({"t": tensor(0, 4, [1]) | {"data_offsets": [0, 4, 4]}}, ONE),
        "data_offsets that are not",
    ),
    "offsets text": (
        file_bytes({"t": tensor(0, 4, [1]) | {"data_offsets": ["0", "4"]}}, ONE),
        "data_offsets that are not",
    ),
    "shape and bytes": (file_bytes({"t": tensor(0, 4, [2])}, ONE), r"\[2\] of F32, which is 64 bits, but .* 4 bytes"),
    "half a byte": (file_bytes({"t": tensor(0, 2, [3], "F4")}, bytes(2)), r"which is 12 bits, but data_offsets of 2"),
    "overlap": (file_bytes({"a": tensor(0, 8, [2]), "b": tensor(4, 8, [1])}, bytes(8)), "'b' begins at .*, inside 'a'"),
    "inside": (file_bytes({"a": tensor(0, 8, [2]), "b": tensor(4, 4, [0])}, bytes(8)), "'b' begins at .*, inside 'a'"),
    "gap": (
        file_bytes({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, bytes(12)),
        "before 'b', belong to no tensor",
    ),
    "first gap": (file_bytes({"a": tensor(4, 8, [1])}, bytes(8)), "before 'a', belong to no tensor"),
    "truncated": (file_bytes({"a": tensor(0, 8, [2])}, bytes(7)), "it is truncated"),
    "trailing": (file_bytes({"a": tensor(0, 8, [2])}, bytes(9)), "after the last tensor, belong to no tensor"),
    "only trailing": (file_bytes({}, b"x"), "after the last tensor"),
}


@pytest.mark.parametrize(("data", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_refuses(tmp_path: Path, data: bytes, message: str) -> None:
    path = save(tmp_path / "bad.safetensors", data)
    with pytest.raises(ModelFileError, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 64) | st.floats() | st.sampled_from(["F32", "U8", "F4", ""]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape"]), children),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "F16", "U8", "F4"]) | JSON_VALUES,
    "shape": st.lists(st.integers(0, 4), max_size=3) | JSON_VALUES,
    "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2).map(sorted) | JSON_VALUES,
})  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRIES | JSON_VALUES), size=st.integers(0, 24)
)
def test_any_header_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], size: int
) -> None:
    path = save(tmp_path_factory.getbasetemp() / "any.safetensors", file_bytes(header, bytes(size)))
    with contextlib.suppress(FreeholdError):  # anything else it raises is a bug
        file = SafetensorsFile(path)
        for name in file.names:
            with contextlib.suppress(UnsupportedError):
                file.get(name).to_float32()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutations_load_or_are_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    seed = bytearray(file_bytes({"a": tensor(0, 8, [2]), "b": tensor(8, 12, [3, 1, 2], "BF16")}, bytes(20)))
    for _ in range(data.draw(st.integers(1, 3))):
        seed[data.draw(st.integers(0, len(seed) - 1))] = data.draw(st.integers(0, 255))
    path = save(tmp_path_factory.getbasetemp() / "mutated.safetensors", bytes(seed))
    with contextlib.suppress(FreeholdError):
        file = SafetensorsFile(path)
        for name in file.names:
            with contextlib.suppress(UnsupportedError):
                file.get(name).to_float32()


def write_shards(directory: Path, weight_map: Mapping[str, Any] | None = None) -> None:
    for shard, names in {"one.safetensors": "ab", "two.safetensors": "cd"}.items():
        header = {name: tensor(4 * i, 4 * i + 4, [1]) for i, name in enumerate(names)}
        numbers = np.array([ord(name) for name in names], np.float32)
        save(directory / shard, file_bytes(header, numbers.tobytes()))
    usual = {"a": "one.safetensors", "c": "two.safetensors", "b": "one.safetensors", "d": "two.safetensors"}
    index = {"metadata": {"total_size": 16}, "weight_map": usual if weight_map is None else weight_map}
    (directory / INDEX_NAME).write_text(json.dumps(index))


def test_shards_are_one_set_of_tensors(tmp_path: Path) -> None:
    write_shards(tmp_path)
    shards = SafetensorsShards(tmp_path)
    assert shards.names == ("a", "b", "c", "d")
    assert [shards.get(name).to_float32()[0] for name in "abcd"] == [ord(name) for name in "abcd"]
    assert shards.n_bytes == 16
    shards.release("c")
    assert shards.span("d").shape == (1,)
    with pytest.raises(NotFoundError, match="no tensor 'e'"):
        shards.get("e")
    shards.close()


def test_the_index_decides_which_tensors_there_are(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "one.safetensors"})
    shards = SafetensorsShards(tmp_path)
    assert (shards.names, shards.n_bytes) == (("a",), 4)


def test_shards_may_be_symbolic_links(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    write_shards(blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert SafetensorsShards(snapshot).names == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    "shard",
    [
        "../one.safetensors", "/etc/one.safetensors", "x/one.safetensors", "x\\one.safetensors", "C:one.safetensors",
        "one.bin", "", "..", "one\0.safetensors", "\n.safetensors", "x" * 300 + ".safetensors", 7, None, ["a"],
    ],
)  # fmt: skip
def test_shards_have_plain_names(tmp_path: Path, shard: object) -> None:
    write_shards(tmp_path, {"a": shard})
    with pytest.raises(ModelFileError, match=r"places 'a' in .*; expected the plain name"):
        SafetensorsShards(tmp_path)


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', "{", '{"weight_map": {"a": "x", "a": "y"}}']
)
def test_refuses_a_malformed_index(tmp_path: Path, index: str) -> None:
    write_shards(tmp_path)
    (tmp_path / INDEX_NAME).write_text(index)
    with pytest.raises(ModelFileError, match=INDEX_NAME):
        SafetensorsShards(tmp_path)


def test_missing_shards_are_named_together(tmp_path: Path) -> None:
    write_shards(tmp_path, {str(i): f"shard-{i}.safetensors" for i in range(7)} | {"a": "one.safetensors"})
    with pytest.raises(
        NotFoundError, match=r"7 of the 8 shards its index names are missing: 'shard-0\.safe.* and 2 more;"
    ):
        SafetensorsShards(tmp_path)


def test_missing_tensors_are_named_together(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "two.safetensors", "c": "two.safetensors", "z": "one.safetensors"})
    with pytest.raises(NotFoundError, match=r"2 of the 3 tensors its index names are missing: 'a', 'z'; the download"):
        SafetensorsShards(tmp_path)


def test_several_files_need_an_index(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / INDEX_NAME).unlink()
    with pytest.raises(NotFoundError, match=r"2 safetensors files \(one.safetensors, two.safetensors\) but no model"):
        SafetensorsShards(tmp_path)
    (tmp_path / "one.safetensors").rename(tmp_path / "model.safetensors")
    assert SafetensorsShards(tmp_path).names == ("a", "b")


def write_series(directory: Path, names: list[str], tensors: list[str]) -> None:
    for file, name in zip(names, tensors, strict=True):
        save(directory / f"{file}.safetensors", file_bytes({name: tensor(0, 4, [1])}, bytes(4)))


def test_a_whole_numbered_series_needs_no_index(tmp_path: Path) -> None:
    write_series(tmp_path, ["model--00001-of-00002", "model--00002-of-00002"], ["a", "b"])
    assert SafetensorsShards(tmp_path).names == ("a", "b")
    (tmp_path / "model--00001-of-00002.safetensors").unlink()
    with pytest.raises(
        NotFoundError, match="1 of the 2 shards of its numbered series are missing: 'model--00001-of-00002"
    ):
        SafetensorsShards(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["m-00001-of-00002", "m-00002-of-00002", "n-00001-of-00001"],
        ["m-00001-of-00001", "m-00002-of-00002"],
        ["m-00001-of-00001", "extra"],
        ["m-00003-of-00002"],
        ["m-00001-of-00000"],
        ["m{0}-00001-of-00002", "m-00002-of-00002"],
    ],
)
def test_what_is_no_whole_series_needs_an_index(tmp_path: Path, names: list[str]) -> None:
    write_series(tmp_path, names, [f"t{index}" for index in range(len(names))])
    with pytest.raises(NotFoundError, match="that says how they belong together"):
        SafetensorsShards(tmp_path)


def test_a_series_holds_each_tensor_once(tmp_path: Path) -> None:
    write_series(tmp_path, ["m-00001-of-00002", "m-00002-of-00002"], ["a", "a"])
    with pytest.raises(ModelFileError, match=r"m-00002-of-00002\.\w+ holds the tensor 'a', as another file does"):
        SafetensorsShards(tmp_path)


def test_raw_bytes_of_any_type(tmp_path: Path) -> None:
    header = {"a": tensor(0, 3, [3], "U8"), "b": tensor(3, 5, [1], "F16")}
    save(tmp_path / "model.safetensors", file_bytes(header, bytes([1, 2, 3, 4, 5])))
    shards = SafetensorsShards(tmp_path)
    assert shards.raw("a").tolist() == [1, 2, 3]
    assert shards.raw("b").tolist() == [4, 5]
    with pytest.raises(NotFoundError):
        shards.raw("c")
    with pytest.raises(UnsupportedError, match="'a' is stored as U8"):
        shards.get("a")
