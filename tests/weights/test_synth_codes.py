"""The whole numbers of quantised matrices: of the right size, in the formats they are meant for, for ever the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from freehold.weights.synth import write_checkpoint
from freehold.weights.synth.codes import Codes
from freehold.weights.synth.numbers import BF16, F8_E4M3, F8_SCALES, Bits
from synth_files import read_safetensors
from tiny_shapes import tiny

KINDS = [Codes(1.0, fp8, n_bits) for fp8 in (False, True) for n_bits in (4, 8)]


def drawn(numbers: Codes, name: str = "a", n_rows: int = 256, n_cols: int = 512) -> np.ndarray:
    return numbers.codes(Bits(0, name), n_rows, n_cols)


@pytest.mark.parametrize("numbers", KINDS)
def test_numbers_are_symmetric_and_of_the_size_asked_for(numbers: Codes) -> None:
    halves = numbers.encode(drawn(numbers), BF16).view("<u2")
    values = (halves.astype(np.uint32) << 16).view(np.float32)
    assert 1 / 1.42 < values.std() < 1.42
    assert abs(values.mean()) < 0.02


def test_four_bits_have_odd_numbers_and_three_scales() -> None:
    blocks = drawn(Codes(1.0, n_bits=4)).reshape(-1, 32).astype(int)
    factor = np.gcd.reduce(blocks, axis=1)
    assert set(factor) == {1, 2, 4}
    assert set(np.unique(blocks // factor[:, None])) == set(range(-15, 16, 2))


@pytest.mark.parametrize("n_bits", [4, 8])
def test_fp8_has_four_significant_bits_and_scales_of_its_own(n_bits: Any) -> None:
    numbers = Codes(1.0, fp8=True, n_bits=n_bits)
    codes = drawn(numbers).astype(int)
    assert all(np.abs(n) // (np.abs(n) & -np.abs(n)) < 16 for n in np.unique(codes))
    scales = numbers.rows(Bits(0, "a"), F8_SCALES, 200, 320).view("<f4")
    assert scales.shape == (2, 3)
    assert numbers.rows(Bits(0, "a"), F8_E4M3, 200, 320).shape == (200, 320)
    many = numbers.rows(Bits(0, "a"), F8_SCALES, 128 * 16, 128 * 16).view("<f4")
    assert len(np.unique(many)) == 4
    assert many.max() == 8 * many.min()


def test_where_a_file_of_four_bits_has_eight(tmp_path: Path) -> None:
    published = tiny("qwen3-30b-a3b", hidden_size=256, moe_intermediate_size=96)
    reader = gguf.GGUFReader(write_checkpoint(published, tmp_path / "a", container="gguf", quant="q4_k"))
    found = {t.name.removeprefix("blk.0."): t.tensor_type.name for t in reader.tensors}
    assert {kind for name, kind in found.items() if "norm" in name or "gate_inp" in name} == {"F32"}
    assert {found["token_embd.weight"], found["output.weight"]} == {"Q8_0"}
    assert {found["attn_q.weight"], found["attn_v.weight"], found["ffn_gate_exps.weight"]} == {"Q4_K"}
    assert {found["attn_output.weight"], found["ffn_down_exps.weight"]} == {"Q8_0"}  # rows of 128 and 96
    assert reader.fields["general.file_type"].parts[-1][0] == 14


def test_the_quant_changes_the_numbers_of_its_matrices_only(tmp_path: Path) -> None:
    published = tiny("llama-3.2-1b", hidden_size=256)
    eight = read_safetensors(write_checkpoint(published, tmp_path / "a"))
    four = read_safetensors(write_checkpoint(published, tmp_path / "b", quant="q4_k"))
    changed = {name.rpartition("layers.")[2][2:] for name in eight if not np.array_equal(eight[name], four[name])}
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    assert changed == {f"{kind}.weight" for kind in kinds}  # the rows of o_proj and down_proj are shorter than a block


def test_a_seed_means_the_same_numbers_for_ever() -> None:
    digests = [hashlib.sha256(drawn(numbers).tobytes()).hexdigest()[:16] for numbers in KINDS]
    assert digests == ["515f2ee755eaae1d", "ce7c8d58a0e34e7f", "515f2ee755eaae1d", "e02e494fdbbf02a6"]
