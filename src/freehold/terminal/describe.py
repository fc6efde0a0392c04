"""`freehold show`: what a model is and what it needs here, from its files' headers or from the catalogue alone.

Owns what is said and how it reads. The numbers are those that loading and planning use (`shapes`); nothing is loaded,
and no number of any tensor is read. What comes from the catalogue's shapes instead of a file is called an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from freehold.errors import NotFoundError, UnsupportedError
from freehold.hardware import detect
from freehold.hardware.estimate import ModelShape
from freehold.hardware.footprint import Footprint
from freehold.hub import Resolved, Store, resolve
from freehold.hub.catalog import KnownModel, can_fetch
from freehold.hub.packed import packed_size
from freehold.models import FAMILIES, Residence, residence
from freehold.models.rounding import Rounding
from freehold.planner import DEFAULT_CONTEXT
from freehold.shapes import shape_of_checkpoint, shape_of_published
from freehold.terminal.console import human_bytes, human_count, table
from freehold.text.answer_style import style_of
from freehold.weights import Checkpoint, open_checkpoint
from freehold.weights.synth import SHAPES
from freehold.weights.synth.published import Published

Facts = dict[str, Any]
_Part = tuple[str, str, int, int]
"""A tensor's name, format, bytes and parameters."""

_CLASSES = (
    ("embedding", ("embed_tokens.",)),
    ("head", ("lm_head.",)),
    ("routed experts", (".mlp.experts.",)),
    ("shared experts", (".mlp.shared_expert",)),
    ("router", (".mlp.gate.", ".mlp.router.")),
    ("norms", ("norm.weight", "norm.bias")),
    ("attention", (".self_attn.",)),
    ("feed-forward", (".mlp.",)),
)
"""What a tensor is for, by what is in its name; the first that fits."""


def describe_model(model: str, weights: Rounding = "auto") -> Facts:
    """What a model is and what it needs, without loading it; of a model that is not here, what the catalogue knows."""
    store = Store()
    resolved = resolve(model, store)
    if resolved.path is not None:
        return _describe_files(resolved, resolved.path, store, weights)
    if resolved.entry is None:
        raise NotFoundError(f"{resolved.name} is not in the store yet; fetch it with `freehold pull {resolved.name}`")
    return _describe_entry(resolved.entry)


def render_model(facts: Facts) -> str:
    """`describe_model` as text."""
    rows = [
        ("model", facts["name"]),
        ("path", facts["path"] or f"not here; {facts['remedy']}"),
        *([("estimate", facts["estimate"])] if facts["estimate"] else []),
        ("architecture", f"{facts['architecture']}, {facts['layers']} layers, vocabulary {facts['vocabulary']}"),
        ("parameters", _parameters(facts)),
        ("weights", f"{human_bytes(facts['bytes'])} as {facts['container']}"),
        *((f"  {row['class']}", _class_line(row)) for row in facts["classes"]),
        ("context", f"{facts['context']} tokens"),
        ("chat template", _template_line(facts)),
        *([("rounded here", f"{facts['rounded']}; --weights native keeps them")] if facts["rounded"] else []),
        ("packed weights", human_bytes(facts["packed_bytes"]) if facts["packed_bytes"] else "not kept yet"),
        ("licence", facts["licence"] or "not stated in the files"),
    ]
    first, *others = _memory_lines(facts["memory"])
    return table([*rows, ("memory", first), *(("", line) for line in others)])


def _describe_files(resolved: Resolved, path: Path, store: Store, weights: Rounding) -> Facts:
    with open_checkpoint(path) as checkpoint:
        config = checkpoint.config
        is_known = config.get("model_type") in FAMILIES
        try:
            shape = shape_of_checkpoint(resolved.name, checkpoint, rounding=weights)
        except UnsupportedError:  # a config that does not say enough; what the tensors tell is still true
            shape = None
        parts = list(_stored_parts(checkpoint))
        loaded = residence(checkpoint, rounding=weights) if is_known else Residence(checkpoint.n_bytes)
        return {
            **_common(resolved.name, config, parts, shape),
            "path": str(path),
            "container": checkpoint.kind,
            "bytes": checkpoint.n_bytes,
            "chat_template": _template(config, checkpoint.chat_template),
            "rounded": loaded.rounded,
            "packed_bytes": packed_size(path, store),
            "licence": _licence(resolved, checkpoint, store),
            "memory": _memory(shape, shape.weight_bytes if shape and is_known else loaded.n_bytes),
            "estimate": None,
            "remedy": None,
        }


def _describe_entry(entry: KnownModel) -> Facts:
    published = SHAPES.get(entry.name)
    parts = list(_published_parts(published)) if published else []
    shape = shape_of_published(entry.name, published, resident=True) if published else None
    n_bytes = sum(part[2] for part in parts)
    as_published = n_bytes == entry.n_bytes
    estimate = "from the catalogue's shapes; no file was read"
    if parts and not as_published:
        estimate += f". Sizes of parts are shares of the file's, which is mostly {entry.precision}"
        parts = [(name, entry.precision, round(size * entry.n_bytes / n_bytes), n) for name, _, size, n in parts]
    facts = _common(entry.name, published.config if published else {}, parts, shape)
    return {
        **facts,
        "path": None,
        "container": entry.format,
        "bytes": entry.n_bytes,
        "chat_template": None,
        "rounded": "",
        "packed_bytes": None,
        "licence": entry.licence,
        "memory": _memory(shape, shape.weight_bytes if shape and as_published else entry.n_bytes),
        "estimate": estimate,
        "remedy": _remedy(entry),
    }


def _common(name: str, config: Mapping[str, Any], parts: list[_Part], shape: ModelShape | None) -> Facts:
    return {
        "name": name,
        "architecture": config.get("model_type"),
        "layers": config.get("num_hidden_layers"),
        "context": config.get("max_position_embeddings"),
        "vocabulary": config.get("vocab_size"),
        "parameters": sum(part[3] for part in parts) or None,
        "parameters_per_token": shape.n_active if shape else None,
        "experts": {"total": shape.n_experts, "per_token": shape.top_k} if shape and shape.n_experts else None,
        "formats": _by_format(parts),
        "classes": _by_class(parts),
    }


def _stored_parts(checkpoint: Checkpoint) -> Iterator[_Part]:
    for name in checkpoint.names:
        tensor = checkpoint.get(name)
        yield name, tensor.format.name, tensor.n_bytes, math.prod(tensor.shape)
        checkpoint.release(name)


def _published_parts(published: Published) -> Iterator[_Part]:
    for tensor in published.tensors(published.config):
        encodings = tensor.numbers.safetensors
        if not encodings:  # a vector that only GGUF has
            continue
        n_bytes = max(1, tensor.n_experts) * sum(one.n_bytes(tensor.shape) for one in encodings.values())
        dtype = next(iter(encodings.values())).dtype
        yield tensor.name, "MXFP4" if dtype == "U8" else dtype, n_bytes, tensor.n_parameters


def _by_format(parts: Iterable[_Part]) -> Facts:
    """Tensors and bytes by format, the most bytes first."""
    found: dict[str, dict[str, int]] = {}
    for _, name, n_bytes, _ in parts:
        entry = found.setdefault(name, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += n_bytes
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def _by_class(parts: Iterable[_Part]) -> list[Facts]:
    """Parameters, bytes and formats by what the tensors are for, the most bytes first."""
    found: dict[str, Facts] = {}
    for name, format_name, n_bytes, n_parameters in parts:
        kind = next((kind for kind, words in _CLASSES if any(word in name for word in words)), "other")
        entry = found.setdefault(kind, {"class": kind, "parameters": 0, "bytes": 0, "formats": {}})
        entry["parameters"] += n_parameters
        entry["bytes"] += n_bytes
        entry["formats"][format_name] = entry["formats"].get(format_name, 0) + n_bytes
    return sorted(found.values(), key=lambda entry: -entry["bytes"])


def _memory(shape: ModelShape | None, loaded: int) -> Facts:
    """What the model takes of memory: its weights once loaded, a token, and its whole context; None is not known."""
    per_token = shape.kv_token_bytes if shape else None
    full = per_token * shape.max_context if shape and per_token else None
    machine = detect()
    budget, n_threads = machine.memory_budget, machine.n_threads
    footprint = shape.footprint if shape else Footprint()
    longest = shape.max_context if shape else 0
    working = footprint.reserve_bytes(loaded, longest, n_threads)
    spare = budget - loaded - working
    fits = max(0, min(shape.max_context, spare // per_token)) if shape and per_token else None
    return {
        "weights_bytes": loaded,
        "kv_bytes_per_token": per_token,
        "kv_bytes_full_context": full,
        "working_bytes": working,
        "total_bytes": None if full is None else loaded + full + working,
        "peak": None if per_token is None else _peak(footprint, loaded, per_token, longest, n_threads),
        "budget_bytes": budget,
        "fitting_context": fits,
    }


def _peak(footprint: Footprint, loaded: int, per_token: int, longest: int, n_threads: int) -> Facts:
    """Most bytes resident after one conversation of so many tokens, and at the first start, which packs the weights."""
    context = min(DEFAULT_CONTEXT, longest)
    later, first = footprint.peak_bytes(loaded, context * per_token, context, 1, n_threads)
    return {"context": context, "bytes": round(later), "first_bytes": round(first)}


def _template(config: Mapping[str, Any], source: str | None) -> Facts | None:
    """How the model is talked to: gpt-oss's format, or a template of its own, with what its answers are read as."""
    if config.get("model_type") == "gpt_oss":
        return {"kind": "harmony", "thinking": True, "calls": "harmony"}
    if source is None:
        return None
    style = style_of(source, ())
    calls = style.calls.name if style.calls else None
    return {"kind": "jinja", "thinking": style.thinking is not None, "calls": calls}


def _licence(resolved: Resolved, checkpoint: Checkpoint, store: Store) -> str | None:
    if resolved.entry is not None:
        return resolved.entry.licence
    stored = store.find(resolved.name) if resolved.kind == "stored" else None
    if stored is not None and stored.manifest is not None and stored.manifest.licence:
        return stored.manifest.licence
    value = (checkpoint.gguf_metadata or {}).get("general.license")
    return value if isinstance(value, str) else None


def _remedy(entry: KnownModel) -> str:
    if can_fetch(entry):
        return f"`freehold pull {entry.name}` fetches it"
    return "the catalogue has no source for it: get its files from its publisher"


def _parameters(facts: Facts) -> str:
    total, active, experts = facts["parameters"], facts["parameters_per_token"], facts["experts"]
    if total is None:
        return "not known"
    if experts is None:
        return human_count(total)
    chosen = f"{experts['per_token']} of {experts['total']} experts"
    return f"{human_count(total)}, {human_count(active)} of them for each token ({chosen})"


def _class_line(row: Facts) -> str:
    formats = sorted(row["formats"], key=lambda name: -row["formats"][name])
    return f"{human_bytes(row['bytes'])}, {human_count(row['parameters'])} parameters, {' + '.join(formats)}"


def _template_line(facts: Facts) -> str:
    template = facts["chat_template"]
    if template is None:
        return "not known before it is fetched" if facts["estimate"] else "none"
    calls = f"calls as {template['calls']}" if template["calls"] else "no tool calls that are known"
    return f"{template['kind']}, {'thinks' if template['thinking'] else 'does not think'}, {calls}"


def _memory_lines(memory: Facts) -> Iterator[str]:
    need = f"{human_bytes(memory['weights_bytes'])} weights + {human_bytes(memory['working_bytes'])} working memory"
    budget = f"this process may use {human_bytes(memory['budget_bytes'])}"
    if memory["kv_bytes_full_context"] is None:
        yield f"{need}; {budget}"
        return
    full = human_bytes(memory["kv_bytes_full_context"])
    yield f"{need} + {full} KV cache at full context = {human_bytes(memory['total_bytes'])}"
    yield f"{human_bytes(memory['kv_bytes_per_token'])} of KV cache per token"
    peak = memory["peak"]
    first = f" ({human_bytes(peak['first_bytes'])} at the first start)"
    yield f"peak {human_bytes(peak['bytes'])} after {peak['context']} tokens{first}"
    if memory["total_bytes"] <= memory["budget_bytes"]:
        yield f"fits: {budget}"
    elif memory["fitting_context"]:
        yield f"fits with a context of {memory['fitting_context']} tokens: {budget}"
    else:
        yield f"does not fit: {budget}"
