"""DeepSeek and Kimi beyond their logits (test_goldens.py): published configs, routing, scales, what is not used."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.core import KVSpec
from freehold.errors import ModelFileError, UnsupportedError
from freehold.kernels import LatentHeads, NativeBackend, Norm, Ops, ReferenceBackend
from freehold.models import load_model, residence
from freehold.models.common import Config, read_rope
from freehold.models.deepseek import DeepseekConfig
from freehold.models.loader import Backend
from freehold.weights import open_checkpoint
from golden_models import GOLDEN, expected_of, load_golden, step
from gpt_oss_files import Stored, read_golden, save_safetensors
from kernel_programs import batch, f32
from plain_models import frequencies, golden_weights, logits, yarn_ends
from qwen_files import golden_config, with_config

COMMON = {
    "attention_bias": False, "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "auto_map": {"AutoModel": "m.M"},
    "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "hidden_act": "silu", "initializer_range": 0.02,
    "kv_lora_rank": 512, "moe_layer_freq": 1, "pretraining_tp": 1, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "seq_aux": True, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1", "use_cache": True, "v_head_dim": 128, "max_position_embeddings": 163840,
}  # fmt: skip
YARN = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}

PUBLISHED: dict[str, dict[str, Any]] = {
    "V2-Lite": COMMON | {
        "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "num_hidden_layers": 27, "first_k_dense_replace": 1, "num_attention_heads": 16,
        "num_key_value_heads": 16, "q_lora_rank": None, "n_routed_experts": 64, "n_shared_experts": 2,
        "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "scoring_func": "softmax",
        "norm_topk_prob": False, "routed_scaling_factor": 1.0,
        "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "V2": COMMON | {
        "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 5120, "intermediate_size": 12288,
        "moe_intermediate_size": 1536, "num_hidden_layers": 60, "first_k_dense_replace": 1, "num_attention_heads": 128,
        "num_key_value_heads": 128, "q_lora_rank": 1536, "n_routed_experts": 160, "n_shared_experts": 2,
        "num_experts_per_tok": 6, "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy",
        "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 16.0,
        "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "V3": COMMON | {
        "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "first_k_dense_replace": 3, "num_attention_heads": 128,
        "num_key_value_heads": 128, "q_lora_rank": 1536, "n_routed_experts": 256, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "Kimi-K2": COMMON | {
        "model_type": "kimi_k2", "vocab_size": 163840, "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "first_k_dense_replace": 1, "num_attention_heads": 64,
        "num_key_value_heads": 64, "q_lora_rank": 1536, "n_routed_experts": 384, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "norm_topk_prob": True, "routed_scaling_factor": 2.827, "num_nextn_predict_layers": 0, "rope_theta": 50000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": YARN | {"factor": 32.0, "beta_fast": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "ends", "scale", "context"),
    [
        ("V2-Lite", (10, 23), 0.11472139, 163840),
        ("V2", (10, 23), 0.13523378, 163840),
        ("V3", (10, 23), 0.13523378, 163840),
        ("Kimi-K2", (19, 20), 0.13086080, 131072),
    ],
)
def test_published_configs(model: str, ends: tuple[int, int], scale: float, context: int) -> None:
    """Every key is known; frequencies and scales are those of the formulas, which the publishers' values confirm."""
    config = PUBLISHED[model]
    read = DeepseekConfig.read(Config(config, model))
    assert yarn_ends(config, 64) == ends
    np.testing.assert_allclose(read.rope.inverse_frequencies, frequencies(config, 64), rtol=1e-12)
    assert read.rope.scale == pytest.approx(1, abs=1e-12)
    assert read.rope.interleaved
    assert read.scale == pytest.approx(scale, abs=5e-9)
    assert read.max_context == context


def test_published_routers() -> None:
    read = {model: DeepseekConfig.read(Config(config, model)).feed_forward for model, config in PUBLISHED.items()}
    shapes = {model: found.mixture for model, found in read.items() if found.mixture is not None}
    assert {model: found.n_dense for model, found in read.items()} == {"V2-Lite": 1, "V2": 1, "V3": 3, "Kimi-K2": 1}
    assert [shape.biased for shape in shapes.values()] == [False, False, True, True]
    assert [shape.shared_size for shape in shapes.values()] == [2816, 3072, 2048, 2048]
    assert [shape.gating.scale for shape in shapes.values()] == [1.0, 16.0, 2.5, 2.827]
    assert [shape.gating.normalised for shape in shapes.values()] == [False, False, True, True]
    assert [(shape.gating.n_groups, shape.gating.n_kept_groups) for shape in shapes.values()] == [
        (1, 1), (8, 3), (8, 4), (1, 1),
    ]  # fmt: skip
    assert (shapes["V2"].gating.group_best, shapes["V3"].gating.group_best) == (1, 2)


BACKENDS: dict[str, Any] = {"reference": ReferenceBackend, "native": partial(NativeBackend, 2)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", ["V3", "V2-Lite", "Kimi-K2"])
@pytest.mark.parametrize("position", [1, 4095, 4096, 4097, 32_768, 131_071, 163_839])
def test_rope_beyond_the_original_context(backend: str, model: str, position: int) -> None:
    """Two tokens that see each other, and what is before them too faintly to count, against float64."""
    config = PUBLISHED[model]
    rng = np.random.default_rng(position)
    q, k = rng.standard_normal((2, 2, 64))
    made: Backend = BACKENDS[backend]()
    got = attend_two(made, config, q, k, position)
    turned = [[turn(x[i], frequencies(config, 64), position - 1 + i) for i in range(2)] for x in (q, k)]
    scores = np.array([turned[0][1] @ turned[1][j] for j in range(2)]) / 8
    weights = np.exp(scores - scores.max())
    expected = np.append(weights / weights.sum() * 4, np.zeros(14))  # a value is 4 in one of 16 places
    np.testing.assert_allclose(got, expected, atol=2e-5 if backend == "reference" else 4e-3)


def turn(x: np.ndarray, turns: list[float], position: int) -> np.ndarray:
    pairs = [complex(*x[2 * i : 2 * i + 2]) for i in range(len(turns))]
    turned = [z * complex(math.cos(position * f), math.sin(position * f)) for z, f in zip(pairs, turns, strict=True)]
    return np.array([part for z in turned for part in (z.real, z.imag)])


def attend_two(backend: Backend, config: dict[str, Any], q: np.ndarray, k: np.ndarray, position: int) -> np.ndarray:
    """What the token at `position` gets from itself and the one before it; all others are zeros, 64 below in score."""
    ops = Ops()
    latents = np.eye(16)[:2]  # normalised: four times that
    x = ops.embed(backend.matrix(f32(np.hstack([np.full((2, 16), 8.0), q, latents, k]))))
    parts = np.split(np.eye(160), [80])
    queries, latent = ops.linear(x, [backend.matrix(f32(part)) for part in parts])
    ones, unit = backend.matrix(f32(np.ones((16, 16)))), backend.matrix(f32(np.eye(16)))
    heads = LatentHeads(Norm(np.ones(16, np.float32), 0.0), (ones,), (ones,), (unit,))
    rope = read_rope(Config(config, "test"), 64, interleaved=True)
    ops.head(ops.attend_latent(queries, latent, heads, rope=rope, scale=0.125), unit)
    program = backend.compile(ops)
    return np.asarray(program.run(batch([(position - 1, 2)], tokens=[0, 1]), program.new_kv(position // 32 + 1))[1])


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("deepseek_v2_lite", {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
    ("deepseek_v2_lite", {"routed_scaling_factor": 16.0, "num_experts_per_tok": 2}),
    ("deepseek_v2_lite", {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}),
    ("deepseek_v2_lite", {"rope_scaling": None}),
    ("deepseek_v3", {"n_group": 1, "topk_group": 1, "model_type": "kimi_k2"}),
    ("deepseek_v3", {"n_group": 8, "topk_group": 2, "norm_topk_prob": False}),
    ("deepseek_v3", {"n_group": 2, "topk_group": 1, "routed_scaling_factor": 0.7, "rms_norm_eps": 0.1}),
    ("deepseek_v3", {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy", "norm_topk_prob": False}),
]


@pytest.mark.parametrize(("family", "change"), CHANGES)
def test_config_keys_against_the_formulas(tmp_path: Path, family: str, change: dict[str, Any]) -> None:
    """Values that no golden checkpoint has, against the model written down in float64."""
    golden = expected_of(family)
    ids = golden["input_ids"][:24]
    with open_checkpoint(with_config(tmp_path, family, **change)) as checkpoint:
        model = load_model(checkpoint, precision="reference")
    got = step(model, ids, 0, model.new_kv(1))
    expected = logits(golden_config(family) | change, golden_weights(family), ids)
    assert np.abs(got - expected).max() <= 2e-3
    assert np.abs(got - golden["logits"][:24]).max() > 0.05


def test_keys_that_change_nothing(tmp_path: Path) -> None:
    change = {"n_group": 3, "topk_group": 7, "scoring_func": "softmax", "moe_layer_freq": 1, "aux_loss_alpha": 0.001}
    with open_checkpoint(with_config(tmp_path, "deepseek_v2_lite", seq_aux=True, ep_size=1, **change)) as checkpoint:
        model = load_model(checkpoint, precision="reference")
    golden = expected_of("deepseek_v2_lite")
    np.testing.assert_allclose(step(model, golden["input_ids"], 0, model.new_kv(3)), golden["logits"], atol=2e-3)


@pytest.mark.parametrize("family", ["deepseek_v2_lite", "deepseek_v3", "deepseek_v3_fp8"])
def test_step_by_step_equals_whole(family: str) -> None:
    model, ids = load_golden(family, precision="reference"), expected_of(family)["input_ids"][:24]
    whole = step(model, ids, 0, model.new_kv(1))
    kv = model.new_kv(1)
    steps = [step(model, ids[i : i + 1], i, kv)[0] for i in range(len(ids))]
    np.testing.assert_allclose(steps, whole, atol=2e-4)


@pytest.mark.parametrize("family", ["deepseek_v2_lite", "deepseek_v3", "deepseek_v3_fp8"])
def test_every_tensor_is_used(family: str) -> None:
    with open_checkpoint(GOLDEN / family) as checkpoint:
        total = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names)
    assert load_golden(family, precision="reference").n_parameters == total


def test_the_cache_keeps_the_latent() -> None:
    model = load_golden("deepseek_v3", precision="reference")
    assert set(model.kv_specs) == {KVSpec("latent", 1, 64 + 16, 0)}


def with_tensors(directory: Path, family: str, tensors: dict[str, Stored], drop: str = "\0") -> Path:
    """The golden checkpoint with tensors added, and without those whose name holds `drop`."""
    kept = {name: tensor for name, tensor in read_golden(GOLDEN / family).items() if drop not in name}
    save_safetensors(directory / "model.safetensors", kept | tensors)
    shutil.copy(GOLDEN / family / "config.json", directory)
    return directory


def test_layers_that_guess_ahead_are_neither_loaded_nor_counted(tmp_path: Path) -> None:
    """The layer of index num_hidden_layers (MTP), and the rotary frequencies that Kimi-K2 stores."""
    golden = read_golden(GOLDEN / "deepseek_v3")
    extra = {n.replace("layers.2.", "layers.3."): tensor for n, tensor in golden.items() if "layers.2." in n}
    extra["model.layers.3.eh_proj.weight"] = golden["model.layers.0.self_attn.o_proj.weight"]
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = Stored("F32", (8,), bytes(32))
    extra["model.layers.0.self_attn.rotary_emb.steps"] = Stored("I64", (4,), bytes(32))
    seen: list[tuple[int, int]] = []
    with open_checkpoint(GOLDEN / "deepseek_v3") as checkpoint:
        plain = load_model(checkpoint, precision="reference")
        expected = residence(checkpoint, "reference"), residence(checkpoint)
        n_bytes = checkpoint.n_bytes
    with open_checkpoint(with_tensors(tmp_path, "deepseek_v3", extra)) as checkpoint:
        model = load_model(checkpoint, precision="reference", progress=lambda *done: seen.append(done))
        assert residence(checkpoint, "reference") == expected[0]
        assert residence(checkpoint).n_bytes - expected[1].n_bytes == 32  # of a kind that is not read
    assert (model.n_parameters, model.n_bytes) == (plain.n_parameters, plain.n_bytes)
    assert seen[-1] == (n_bytes, n_bytes + 32)
    ids = expected_of("deepseek_v3")["input_ids"][:8]
    assert np.array_equal(step(model, ids, 0, model.new_kv(1)), step(plain, ids, 0, plain.new_kv(1)))


@pytest.mark.parametrize("family", ["deepseek_v2_lite", "deepseek_v3"])
def test_heads_in_two_tensors_as_gguf_has_them(tmp_path: Path, family: str) -> None:
    config = golden_config(family)
    n, k, v = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
    split: dict[str, Stored] = {}
    for name, numbers in golden_weights(family).items():
        if name.endswith("kv_b_proj.weight"):
            both = numbers.reshape(n, k + v, -1).astype("<f4")
            for part, values in (("k_b", both[:, :k].transpose(0, 2, 1)), ("v_b", both[:, k:])):
                split[name.replace("kv_b", part)] = Stored("F32", values.shape, values.tobytes())
    with open_checkpoint(with_tensors(tmp_path, family, split, drop="kv_b_proj")) as checkpoint:
        model = load_model(checkpoint, precision="reference")
    plain, ids = load_golden(family, precision="reference"), expected_of(family)["input_ids"][:24]
    assert model.n_parameters == plain.n_parameters
    assert np.array_equal(step(model, ids, 0, model.new_kv(1)), step(plain, ids, 0, plain.new_kv(1)))


@pytest.mark.parametrize(
    ("family", "change", "error", "message"),
    [
        ("deepseek_v2_lite", {"norm_topk_prob": True}, UnsupportedError, "norm_topk_prob"),
        ("deepseek_v2_lite", {"topk_method": "noaux_tc"}, UnsupportedError, "topk_method"),
        ("deepseek_v2_lite", {"scoring_func": "sigmoid"}, UnsupportedError, "scoring_func"),
        ("deepseek_v2_lite", {"topk_method": "group_limited_greedy"}, ModelFileError, "n_group"),
        ("deepseek_v2_lite", {"q_lora_rank": 96}, ModelFileError, "q_a_proj"),
        ("deepseek_v2_lite", {"mlp_bias": True}, UnsupportedError, "mlp_bias"),
        ("deepseek_v2_lite", {"moe_layer_freq": 2}, UnsupportedError, "moe_layer_freq"),
        ("deepseek_v2_lite", {"model_type": "deepseek_v3", "topk_method": None}, ModelFileError, "n_group"),
        ("deepseek_v3", {"topk_method": "greedy"}, UnsupportedError, "topk_method"),
        ("deepseek_v3", {"scoring_func": "softmax"}, UnsupportedError, "scoring_func"),
        ("deepseek_v3", {"hidden_act": "gelu"}, UnsupportedError, "hidden_act"),
        ("deepseek_v3", {"attention_bias": True}, UnsupportedError, "attention_bias"),
        ("deepseek_v3", {"tie_word_embeddings": True}, UnsupportedError, "tie_word_embeddings"),
        ("deepseek_v3", {"rope_interleave": False}, UnsupportedError, "rope_interleave"),
        ("deepseek_v3", {"qk_head_dim": 64}, UnsupportedError, "qk_head_dim"),
        ("deepseek_v3", {"index_topk": 2048}, UnsupportedError, "index_topk"),
        ("deepseek_v3", {"n_group": None}, ModelFileError, "n_group"),
        ("deepseek_v3", {"n_group": 3}, ModelFileError, "16 experts cannot be 3 groups"),
        ("deepseek_v3", {"n_group": 16}, ModelFileError, "16 experts cannot be 16 groups of which 2"),
        ("deepseek_v3", {"topk_group": 5}, ModelFileError, "4 groups of which 5 are kept"),
        (
            "deepseek_v3",
            {"topk_group": 1, "num_experts_per_tok": 5},
            ModelFileError,
            "5; the model has 4 experts in the",
        ),
        ("deepseek_v3", {"num_experts_per_tok": 0}, ModelFileError, "num_experts_per_tok"),
        ("deepseek_v3", {"n_shared_experts": -1}, ModelFileError, "n_shared_experts"),
        ("deepseek_v3", {"n_shared_experts": 2}, ModelFileError, "shared_experts.gate_proj"),
        ("deepseek_v3", {"first_k_dense_replace": None}, ModelFileError, "first_k_dense_replace"),
        ("deepseek_v3", {"first_k_dense_replace": 4}, ModelFileError, "first_k_dense_replace is 4"),
        ("deepseek_v3", {"first_k_dense_replace": 0}, ModelFileError, "layers.0.mlp.gate.e_score_correction_bias"),
        ("deepseek_v3", {"routed_scaling_factor": None}, ModelFileError, "routed_scaling_factor"),
        ("deepseek_v3", {"kv_lora_rank": 63}, ModelFileError, "kv_a_proj_with_mqa"),
        ("deepseek_v3", {"v_head_dim": 31}, ModelFileError, "kv_b_proj"),
        ("deepseek_v3", {"qk_nope_head_dim": 0}, ModelFileError, "qk_nope_head_dim"),
        ("deepseek_v3", {"q_lora_rank": -1}, ModelFileError, "q_lora_rank"),
        ("deepseek_v3", {"qk_rope_head_dim": 15, "qk_head_dim": None}, ModelFileError, "15"),
        ("deepseek_v3", {"num_hidden_layers": 4}, ModelFileError, "model.layers.3"),
        ("deepseek_v3", {"rope_scaling": YARN | {"factor": 0.5}}, ModelFileError, "factor 0.5"),
        ("deepseek_v3", {"rope_scaling": {"type": "default", "mscale_all_dim": 1}}, UnsupportedError, "mscale_all_dim"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    tmp_path: Path, family: str, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with open_checkpoint(with_config(tmp_path, family, **change)) as checkpoint, pytest.raises(error, match=message):
        load_model(checkpoint, precision="reference")
