"""Shapes of the catalogue against published sizes, and of files against what loading makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.errors import RequestError, UnsupportedError
from freehold.models import load_model
from freehold.shapes import (
    PlanFormat,
    attention_of,
    formats_of,
    kv_token_bytes,
    shape_of_checkpoint,
    shape_of_published,
)
from freehold.weights import open_checkpoint
from freehold.weights.synth import SHAPES

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

PUBLISHED: list[tuple[str, PlanFormat, float, float]] = [
    # GB in all, and per token: from tensor tables of real files
    ("gpt-oss-20b", "q8_0", 12.1, 2.56),
    ("gpt-oss-120b", "q8_0", 63.4, 3.53),
    ("qwen3-30b-a3b", "q8_0", 32.5, 3.23),
    ("qwen3-30b-a3b", "q4_k_m", 18.6, 1.86),
    ("llama-3.1-8b", "q4_k_m", 4.92, 4.62),
    ("qwen3-8b", "q4_k_m", 5.03, 4.68),
    ("qwen2.5-7b", "q8_0", 8.1, 7.51),
    ("deepseek-r1", "q4_k_m", 404.4, 23.5),
]


@pytest.mark.parametrize(("name", "to", "total", "active"), PUBLISHED)
def test_sizes_are_those_of_real_files(name: str, to: PlanFormat, total: float, active: float) -> None:
    shape = shape_of_published(name, SHAPES[name], to)
    assert shape.weight_bytes == pytest.approx(total * 1e9, rel=0.01)
    read = sum(part.n_bytes for part in shape.read(1).values())
    assert read == pytest.approx(active * 1e9, rel=0.06)


def test_parameters_are_those_that_publishers_state() -> None:
    stated = {"gpt-oss-120b": (116.8, 5.1), "deepseek-r1": (671.0, 37.0), "qwen3-30b-a3b": (30.5, 3.3)}
    for name, (total, active) in stated.items():
        shape = shape_of_published(name, SHAPES[name])
        assert shape.n_parameters == pytest.approx(total * 1e9, rel=0.01)
        assert shape.n_active == pytest.approx(active * 1e9, rel=0.1)  # some count the embedding


def test_every_model_has_a_shape_in_every_format_that_it_offers() -> None:
    for name, published in SHAPES.items():
        sizes = {to: shape_of_published(name, published, to).weight_bytes for to in formats_of(published)}
        assert max(sizes, key=lambda to: sizes[to]) in ("published", "q8_0"), name  # q8_0 is more than FP8
        assert min(sizes.values()) == sizes.get("q4_k_m", sizes["q8_0"]) or "int4" in sizes, name
    with pytest.raises(RequestError, match="expected one of published, q8_0"):
        shape_of_published("gpt-oss-20b", SHAPES["gpt-oss-20b"], "int4")


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3_moe", "deepseek_v3", "glm4_moe", "gpt_oss"])
def test_a_file_takes_what_loading_makes_of_it(name: str) -> None:
    found = sorted({path.parent for path in (GOLDEN / name).rglob("config.json")})
    if not found:
        pytest.skip("no checkpoint directory there")
    with open_checkpoint(found[0]) as checkpoint:
        shape = shape_of_checkpoint(name, checkpoint)
        assert shape.weight_bytes == pytest.approx(load_model(checkpoint).n_bytes, rel=0.01)
        assert shape.kv_token_bytes == kv_token_bytes(checkpoint.config)


def test_attention_as_configs_tell_it() -> None:
    llama = {"num_hidden_layers": 32, "num_key_value_heads": 8, "hidden_size": 4096, "num_attention_heads": 32}
    assert kv_token_bytes(llama) == 32 * 8 * 256 * 2
    gpt_oss = attention_of(SHAPES["gpt-oss-20b"].config)
    assert [(part.kind, part.n_layers, part.window) for part in gpt_oss] == [("full", 12, None), ("window", 12, 128)]
    assert kv_token_bytes(SHAPES["deepseek-r1"].config) == 70_272
    (latent,) = attention_of(SHAPES["deepseek-r1"].config)
    assert latent.pair_flops == 278_528
    assert kv_token_bytes({"num_hidden_layers": 30}) is None
    for broken in ({**llama, "num_hidden_layers": "32"}, {**llama, "num_attention_heads": True}):
        with pytest.raises(UnsupportedError, match="whole number"):
            attention_of(broken)
