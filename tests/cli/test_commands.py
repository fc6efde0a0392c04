"""The other commands, in this process: pull, ls, rm, show, doctor, logits, bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import Loads, Run
from scripted_model import VOCAB


@pytest.fixture
def checkpoint(tmp_path: Path) -> Any:
    """A directory with one safetensors file of three small tensors."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    shapes = {"a.weight": ("F32", [4, 8], 128), "b.weight": ("BF16", [8, 8], 128), "c.weight": ("BF16", [8], 16)}
    header, offset = {}, 0
    for name, (dtype, shape, n_bytes) in shapes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + n_bytes]}
        offset += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(offset))
    config = {"model_type": "llama", "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 4}
    config |= {"max_position_embeddings": 100, "vocab_size": 4, "hidden_size": 8, "num_attention_heads": 2}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_show(freehold: Run, checkpoint: Path) -> None:
    facts = json.loads(freehold("show", str(checkpoint), "--json").out)
    assert (facts["name"], facts["architecture"], facts["container"]) == ("tiny", "llama", "safetensors")
    assert (facts["parameters"], facts["bytes"], facts["context"]) == (32 + 64 + 8, 272, 100)
    assert facts["formats"] == {"BF16": {"tensors": 2, "bytes": 144}, "F32": {"tensors": 1, "bytes": 128}}
    assert facts["memory"]["kv_bytes_per_token"] == 2 * 2 * 2 * 4 * 2
    assert (facts["chat_template"], facts["licence"], facts["estimate"]) == (None, None, None)
    text = freehold("show", str(checkpoint)).out
    assert "272 B, 104 parameters, BF16 + F32" in text
    assert "not stated" in text


def test_show_says_how_to_get_a_model(freehold: Run) -> None:
    outcome = freehold("show", "smollm2")
    assert (outcome.status, outcome.err) == (0, "")
    assert "not here; `freehold pull smollm2` fetches it" in outcome.out


def test_ls_of_an_empty_store(freehold: Run) -> None:
    assert "freehold pull" in freehold("ls").out
    assert json.loads(freehold("ls", "--json").out) == []
    rows = json.loads(freehold("ls", "--all", "--json").out)
    assert {"name": "smollm2", "stored": False}.items() <= rows[0].items()
    assert "not fetched" in freehold("ls", "--all").out


def test_rm_and_pull_of_unknown_models(freehold: Run) -> None:
    for args in (("rm", "smollm2"), ("rm", "no-such"), ("rm", "../x"), ("pull", "no-such")):
        outcome = freehold(*args)
        assert (outcome.status, outcome.out) == (2, "")
        assert outcome.err.count("\n") == 1
    assert "smollm2" in freehold("pull", "smolm2").err


def test_pull_verifies_a_file_fetched_by_hand(freehold: Run, tmp_path: Path, store_home: Path) -> None:
    wrong = tmp_path / "model.gguf"
    wrong.write_bytes(b"GGUF rubbish")
    outcome = freehold("pull", "smollm2", "--from", str(wrong))
    assert outcome.status == 2
    assert json.loads(freehold("ls", "--json").out) == []


def test_pull_prints_the_path_and_takes_an_interrupt(
    freehold: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("freehold.hub.sources.pull", lambda name, store, **options: tmp_path / name)
    assert freehold("pull", "smollm2").out == f"{tmp_path / 'smollm2'}\n"

    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("freehold.hub.sources.pull", interrupted)
    assert freehold("pull", "smollm2").status == 130


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.kernels.measure_bandwidth", lambda n_threads: 20.0)


@pytest.mark.usefixtures("kernels")
def test_doctor(freehold: Run, store_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = json.loads(freehold("doctor", "--json").out)
    assert facts["store"]["path"] == str(store_home)
    assert facts["memory_bandwidth_gb_per_s"] == 20.0
    assert facts["isa"]["level"] in facts["isa"]["available"]
    assert facts["memory_budget_bytes"] > 0
    monkeypatch.setenv("FREEHOLD_MEMROY", "8G")
    text = freehold("doctor").out
    assert "problem: the environment variable FREEHOLD_MEMROY" in text
    assert "remedy:" in text


@pytest.mark.usefixtures("kernels")
def test_doctor_survives_a_level_that_cannot_run(freehold: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from freehold.errors import KernelError

    def isa() -> None:
        raise KernelError("FREEHOLD_ISA is 'amx', but this processor lacks it")

    monkeypatch.setattr("freehold.kernels.isa", isa)
    facts = json.loads(freehold("doctor", "--json").out)
    assert facts["isa"]["level"] is None
    assert facts["problems"][-1]["remedy"] == "unset FREEHOLD_ISA"


def test_bad_environment_is_one_line(freehold: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_THREADS", "many")
    outcome = freehold("doctor")
    assert outcome.status == 2
    assert "FREEHOLD_THREADS" in outcome.err


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_logits(freehold: Run, loads: Loads, tmp_path: Path, dtype: Any) -> None:
    loads()
    np.save(tmp_path / "ids.npy", np.arange(70, dtype=dtype))
    outcome = freehold("logits", "smollm2", "--ids", str(tmp_path / "ids.npy"), "--out", str(tmp_path / "out.npy"))
    assert (outcome.status, outcome.out) == (0, "")
    logits = np.load(tmp_path / "out.npy", allow_pickle=False)
    assert (logits.shape, logits.dtype) == ((70, VOCAB), np.float32)
    assert logits.argmax(axis=1).tolist() == list(range(1, 71))
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["ids.npy", "out.npy"]


@pytest.mark.parametrize(
    "ids",
    [
        np.zeros((2, 2), np.int32),
        np.zeros(0, np.int32),
        np.zeros(3, np.float32),
        np.array([True]),
        np.array([VOCAB]),
        np.array([-1]),
        np.array([2**63], np.uint64),
        np.zeros(100_000, np.int8),
        b"\x93NUMPY\x01\x00\x46\x00{'descr': '<i4', 'fortran_order': False, 'shape': (1000000000000,)}  \n",
        np.array([{"pickle": 1}], dtype=object),
        b"not numpy at all",
        b"\x93NUMPY\x01\x00",
        b"PK\x03\x04",
        b"",
        None,
    ],
)
def test_bad_ids_cost_one_line_and_write_nothing(freehold: Run, loads: Loads, tmp_path: Path, ids: Any) -> None:
    loads()
    path = tmp_path / "ids.npy"
    if isinstance(ids, bytes):
        path.write_bytes(ids)
    elif ids is not None:
        np.save(path, ids, allow_pickle=True)
    outcome = freehold("logits", "smollm2", "--ids", str(path), "--out", str(tmp_path / "out.npy"))
    assert outcome.status == 2
    assert outcome.err.startswith("freehold: error: ")
    assert outcome.err.count("\n") == 1
    assert {entry.name for entry in tmp_path.iterdir()} <= {"ids.npy", "store"}


def test_logits_to_nowhere(freehold: Run, loads: Loads, tmp_path: Path) -> None:
    loads()
    np.save(tmp_path / "ids.npy", np.arange(3))
    outcome = freehold("logits", "m", "--ids", str(tmp_path / "ids.npy"), "--out", str(tmp_path / "no" / "out.npy"))
    assert outcome.status == 2
    assert "cannot write" in outcome.err


def test_a_failed_run_leaves_no_partial_file(
    freehold: Run, loads: Loads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads()
    np.save(tmp_path / "ids.npy", np.arange(3))

    def failing(self: Any, ids: Any) -> Any:
        yield np.zeros((1, VOCAB), np.float32)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("freehold.runtime.LocalModel.iter_logits", failing)
    outcome = freehold("logits", "m", "--ids", str(tmp_path / "ids.npy"), "--out", str(tmp_path / "out.npy"))
    assert outcome.status == 2
    assert "No space left" in outcome.err
    assert {entry.name for entry in tmp_path.iterdir()} <= {"ids.npy", "store"}


@pytest.mark.usefixtures("kernels")
def test_bench(freehold: Run, loads: Loads) -> None:
    calls = loads()
    args = ("bench", "smollm2", "--pp", "40", "--tg", "8", "--depth", "20", "--batch", "3", "--runs", "2")
    facts = json.loads(freehold(*args, "--json").out)
    assert {"context": 41, "conversations": 3, "prefix_cache": False}.items() <= calls[0].items()
    assert len(facts["prefill_runs"]) == len(facts["decode_runs"]) == 2
    assert facts["prefill_tokens_per_second"] > 0
    assert facts["decode_bytes_per_step"] == 1000 + 3 * 2 * 2 * (20 + 4)
    assert facts["roofline_fraction"] >= 0
    text = freehold(*args).out
    assert "3 sequences at once" in text
    assert "of the 20.0 GB/s measured" in text


@pytest.mark.parametrize("option", ["--pp", "--tg", "--depth", "--batch", "--runs"])
def test_bench_refuses_empty_workloads(freehold: Run, loads: Loads, option: str) -> None:
    loads()
    assert freehold("bench", "smollm2", option, "0").status == 2


def test_bench_refuses_a_batch_that_does_not_fit(freehold: Run, loads: Loads) -> None:
    loads(n_sequences=1)
    outcome = freehold("bench", "smollm2", "--batch", "2")
    assert outcome.status == 2
    assert "KV blocks" in outcome.err
