"""The predicted peak of memory: which tensor makes which buffer, and SmolLM2 as it really loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.footprints import Described, footprint_of
from freehold.hardware import detect
from freehold.hardware.footprint import CODED, PLAIN, Footprint
from freehold.models import load_model, residence
from freehold.shapes import shape_of_checkpoint, shape_of_published
from freehold.weights import open_checkpoint
from freehold.weights.synth import SHAPES

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SMALL, LARGE = 1 << 20, 100 << 20


def test_buffers_of_a_mixture_with_latent_attention() -> None:
    found = shape_of_published("deepseek-v2-lite", SHAPES["deepseek-v2-lite"], "q8_0", resident=True).footprint
    attention = 2048 + 16 * (192 + 128) + 512 + 64 + 16 * (2 * 512 + 64)
    assert found.values == attention + 10944 + 2816 + 64 + 6 * 1408
    assert (found.columns, found.pair_columns, found.top_k, found.n_experts) == (10944, 2048, 6, 64)
    assert (found.column_bytes, found.pair_bytes) == (PLAIN + CODED, CODED)  # the router is not quantised


def test_buffers_of_a_dense_model() -> None:
    found = shape_of_published("qwen2.5-0.5b", SHAPES["qwen2.5-0.5b"], "q8_0", resident=True).footprint
    assert found.values == 896 + 2 * (896 + 128) + 4864
    assert (found.columns, found.column_bytes, found.top_k) == (4864, CODED, 0)


def test_a_config_that_says_nothing_leaves_the_program() -> None:
    found = footprint_of({"hidden_size": "many"}, [])
    assert found.working_bytes(4096, 1, 2) == Footprint().working_bytes(4096, 1, 2)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([SMALL, SMALL, SMALL], 3 * SMALL),  # they are read again when they are packed, and stay
        ([LARGE], 64 << 20),  # piece by piece
        ([LARGE, SMALL], 63 << 20),  # what is still to be packed has no memory yet
        ([SMALL, LARGE], SMALL + (64 << 20)),
    ],
)
def test_what_is_mapped_while_packing(sizes: list[int], expected: int) -> None:
    tensors = [Described(f"{index}.weight", (1000, size // 1000), size) for index, size in enumerate(sizes)]
    assert footprint_of({}, tensors).mapped_bytes == expected


def test_latent_keys_are_counted_in_both_forms() -> None:
    for directory in sorted({path.parent for path in (GOLDEN / "deepseek_v3").rglob("config.json")}):
        with open_checkpoint(directory) as checkpoint:
            assert residence(checkpoint, rounding="native").n_bytes == pytest.approx(
                load_model(checkpoint, rounding="native").n_bytes, rel=0.01
            )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_smollm2_peaks_where_it_is_predicted(smollm2_home: Path, smollm2_path: Path) -> None:
    with open_checkpoint(smollm2_path) as checkpoint:
        shape = shape_of_checkpoint("smollm2", checkpoint)
    environment = {**os.environ, "FREEHOLD_HOME": str(smollm2_home), "FREEHOLD_PACKED": "off"}
    command = [sys.executable, "-m", "freehold", "bench", "smollm2", "--runs", "1", "--tg", "2", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=120)
    measured = json.loads(done.stdout)["peak_memory_bytes"]
    context, n_threads = 512 + 2 + 1, detect().n_threads
    _, first = shape.footprint.peak_bytes(shape.weight_bytes, context * shape.kv_token_bytes, context, 1, n_threads)
    assert first == pytest.approx(measured, rel=0.1)
