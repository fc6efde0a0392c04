"""Whole models in float64 from their papers' formulas: one frequency, one head, one expert at a time.

Reads configs in publishers' words and shares no code with the package: the oracle of its oracle, for values of a config
that no golden checkpoint has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from freehold.weights import open_checkpoint
from golden_models import GOLDEN

Weights = Mapping[str, np.ndarray]
Config = Mapping[str, Any]


def golden_weights(family: str) -> dict[str, np.ndarray]:
    """The golden checkpoint's numbers in float64."""
    with open_checkpoint(GOLDEN / family) as checkpoint:
        return {name: checkpoint.get(name).to_float32().astype(np.float64) for name in checkpoint.names}


def frequencies(config: Config, dim: int) -> list[float]:
    """Of each of dim / 2 pairs, radians per position."""
    scaling = config.get("rope_scaling") or {}
    kind, theta = scaling.get("rope_type", scaling.get("type")), config["rope_theta"]
    plain = [theta ** (-2 * i / dim) for i in range(dim // 2)]
    if kind is None:
        return plain
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    if kind == "llama3":
        slow, fast = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = [original * f / (2 * math.pi) for f in plain]  # within the original context
        kept = [min(max((n - slow) / (fast - slow), 0), 1) for n in turns]
    else:
        assert kind == "yarn"
        low, high = yarn_ends(config, dim)
        kept = [1 - min(max((i - low) / (high - low), 0), 1) for i in range(dim // 2)]
    return [f * k + f / factor * (1 - k) for f, k in zip(plain, kept, strict=True)]


def yarn_ends(config: Config, dim: int) -> tuple[int, int]:
    """The pairs between which YaRN's ramp lies: that turn beta_fast and beta_slow times in the original context."""
    scaling, ends = config["rope_scaling"], []
    for turns in (scaling.get("beta_fast", 32), scaling.get("beta_slow", 1)):
        length = scaling["original_max_position_embeddings"] / (2 * math.pi * turns)
        ends.append(dim * math.log(length) / (2 * math.log(config["rope_theta"])))
    return max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), dim - 1)


def growth(config: Config, key: str | None = None) -> float:
    """What YaRN multiplies queries and keys with, with `mscale` or `mscale_all_dim` instead of 1."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type")) != "yarn":
        return 1.0
    return 0.1 * float(scaling.get(key, 0) if key else 1) * math.log(scaling["factor"]) + 1


def rotate(x: np.ndarray, turns: list[float], *, interleaved: bool = False, scale: float = 1.0) -> np.ndarray:
    """x: [T, dim] at positions 0 to T - 1; what is beyond the pairs stays."""
    out, half = x.copy(), len(turns)
    for i, frequency in enumerate(turns):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        angles = np.arange(len(x)) * frequency
        cos, sin = np.cos(angles) * scale, np.sin(angles) * scale
        out[:, a], out[:, b] = x[:, a] * cos - x[:, b] * sin, x[:, b] * cos + x[:, a] * sin
    return out


def rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """Of one head [T, dim], causally."""
    scores = q @ k.T * scale + np.triu(np.full((len(q), len(q)), -np.inf), 1)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(p / p.sum(-1, keepdims=True) @ v)


def grouped_attention(t: np.ndarray, w: Weights, at: str, c: Config) -> np.ndarray:
    dim, group = c["head_dim"], c["num_attention_heads"] // c["num_key_value_heads"]
    turns, scale = frequencies(c, int(dim * c.get("partial_rotary_factor", 1))), growth(c)
    q, k, v = (t @ w[f"{at}{n}_proj.weight"].T + w.get(f"{at}{n}_proj.bias", 0) for n in "qkv")
    heads = []
    for h in range(c["num_attention_heads"]):
        qh, kh, vh = (m[:, i * dim : (i + 1) * dim] for m, i in ((q, h), (k, h // group), (v, h // group)))
        if f"{at}q_norm.weight" in w:
            qh, kh = (rms(m, w[f"{at}{n}_norm.weight"], c["rms_norm_eps"]) for m, n in ((qh, "q"), (kh, "k")))
        qh, kh = rotate(qh, turns, scale=scale), rotate(kh, turns, scale=scale)
        heads.append(attend(qh, kh, vh, dim**-0.5))
    return np.concatenate(heads, -1)


def latent_attention(t: np.ndarray, w: Weights, at: str, c: Config) -> np.ndarray:
    rank, k_dim, v_dim = c["kv_lora_rank"], c["qk_nope_head_dim"], c["v_head_dim"]
    turns, dim = frequencies(c, c["qk_rope_head_dim"]), k_dim + c["qk_rope_head_dim"]
    scale = growth(c, "mscale") / growth(c, "mscale_all_dim")  # of cosines and sines
    if c["q_lora_rank"]:
        q = rms(t @ w[at + "q_a_proj.weight"].T, w[at + "q_a_layernorm.weight"], 1e-6) @ w[at + "q_b_proj.weight"].T
    else:
        q = t @ w[at + "q_proj.weight"].T
    latent = t @ w[at + "kv_a_proj_with_mqa.weight"].T
    k_rotated = rotate(latent[:, rank:], turns, interleaved=True, scale=scale)
    both = rms(latent[:, :rank], w[at + "kv_a_layernorm.weight"], 1e-6) @ w[at + "kv_b_proj.weight"].T
    heads = []
    for h in range(c["num_attention_heads"]):
        qh, kv = q[:, h * dim : (h + 1) * dim], both[:, h * (k_dim + v_dim) : (h + 1) * (k_dim + v_dim)]
        qh = np.hstack([qh[:, :k_dim], rotate(qh[:, k_dim:], turns, interleaved=True, scale=scale)])
        kh = np.hstack([kv[:, :k_dim], k_rotated])
        heads.append(attend(qh, kh, kv[:, k_dim:], dim**-0.5 * growth(c, "mscale_all_dim") ** 2))
    return np.concatenate(heads, -1)


def mlp(t: np.ndarray, w: Weights, at: str) -> np.ndarray:
    gate, up = (t @ w[f"{at}{n}_proj.weight"].T for n in ("gate", "up"))
    return np.asarray(gate / (1 + np.exp(-gate)) * up @ w[at + "down_proj.weight"].T)


def chosen_experts(scores: np.ndarray, bias: np.ndarray | None, c: Config) -> dict[int, float]:
    """The experts of one token and their weights."""
    sigmoid = bias is not None
    share = 1 / (1 + np.exp(-scores)) if sigmoid else np.exp(scores) / np.exp(scores).sum()
    rank = share + bias if sigmoid else share
    candidates = list(range(len(scores)))
    if sigmoid or c.get("topk_method") == "group_limited_greedy":
        groups = np.split(np.arange(len(scores)), c["n_group"])
        groups.sort(key=lambda group: -np.sort(rank[group])[-2 if sigmoid else -1 :].sum())
        candidates = [int(e) for group in groups[: c["topk_group"]] for e in group]
    best = sorted(candidates, key=lambda e: -rank[e])[: c["num_experts_per_tok"]]
    total = sum(share[e] for e in best) if c["norm_topk_prob"] else 1.0
    return {e: share[e] / total * c.get("routed_scaling_factor", 1.0) for e in best}


def mixture(t: np.ndarray, w: Weights, at: str, c: Config) -> np.ndarray:
    out = mlp(t, w, at + "shared_experts.") if c.get("n_shared_experts") else np.zeros_like(t)
    bias = w[at + "gate.e_score_correction_bias"] if c["model_type"] in BIASED else None
    for token, scores in enumerate(t @ w[at + "gate.weight"].T):
        for expert, weight in chosen_experts(scores, bias, c).items():
            out[token] += weight * mlp(t[token : token + 1], w, f"{at}experts.{expert}.")[0]
    return out


BIASED = ("deepseek_v3", "kimi_k2", "glm4_moe")


def logits(c: Config, w: Weights, ids: np.ndarray) -> np.ndarray:
    """[T, vocab] of the Llama, Qwen, DeepSeek and GLM families, for one sequence."""
    attention = latent_attention if "kv_lora_rank" in c else grouped_attention
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        t = rms(x, w[at + "input_layernorm.weight"], c["rms_norm_eps"])
        x = x + attention(t, w, at + "self_attn.", c) @ w[at + "self_attn.o_proj.weight"].T
        t = rms(x, w[at + "post_attention_layernorm.weight"], c["rms_norm_eps"])
        x = x + (mixture(t, w, at + "mlp.", c) if at + "mlp.gate.weight" in w else mlp(t, w, at + "mlp."))
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return np.asarray(rms(x, w["model.norm.weight"], c["rms_norm_eps"]) @ head.T)
