"""The facts behind `freehold ls`, `show` and `doctor`, as plain data for --json and as text.

Owns what is reported and how it reads. The facts come from the store, the checkpoint and the machine.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freehold import __version__, kernels, settings
from freehold.budget import SCRATCH_BYTES, config_token_bytes
from freehold.errors import FreeholdError, NotFoundError
from freehold.hardware import detect, problems
from freehold.hub import Store, resolve
from freehold.hub.catalog import CatalogEntry, load_catalog, require_source
from freehold.hub.packed import elsewhere, packed_size
from freehold.models import FAMILIES, Residence, residence
from freehold.terminal.console import human_bytes, human_count, printable, table
from freehold.weights import Checkpoint, open_checkpoint

Facts = dict[str, Any]


def list_models(everything: bool = False) -> list[Facts]:
    """The models of the store; with `everything`, those of the catalogue that are not in it as well."""
    store = Store()
    rows = [
        {
            "name": model.name,
            "bytes": model.n_bytes,
            "packed_bytes": packed_size(model.path, store),
            "format": model.format,
            "last_used": int(model.last_used),
            "path": str(model.path),
            "stored": True,
            "problem": model.problem,
        }
        for model in store.models()
    ]
    if everything:
        stored = {row["name"] for row in rows}
        for entry in load_catalog().values():
            if entry.name not in stored:
                rows.append(
                    {
                        "name": entry.name,
                        "bytes": entry.n_bytes,
                        "format": entry.format,
                        "stored": False,
                        "fetchable": isinstance(entry, CatalogEntry),
                    }
                )
    return rows


def render_models(rows: list[Facts]) -> str:
    """One line per model; says how to get one where there is none."""
    if not rows:
        return "no models yet; `freehold pull smollm2` fetches one, `freehold ls --all` shows what there is"
    lines = []
    for row in rows:
        lines.append((row["name"], human_bytes(row["bytes"]), row["format"], _state(row)))
    return table(lines)


def _state(row: Facts) -> str:
    if row["stored"]:
        packed = f", {human_bytes(row['packed_bytes'])} of it packed weights" if row["packed_bytes"] else ""
        return row["problem"] or f"used {_day(row['last_used'])}{packed}"
    return "not fetched" if row["fetchable"] else "cannot be fetched yet; get its files yourself"


def packed_elsewhere() -> str | None:
    """One line on the packed weights that the store keeps of models outside of it; None if it keeps none."""
    store = Store()
    sizes = [packed_size(Path(origin), store) or 0 for origin in elsewhere(store).values()]
    if not any(sizes):
        return None
    return f"{human_bytes(sum(sizes))} more are packed weights of models elsewhere, in {store.root / 'packed'}"


def describe_model(model: str) -> Facts:
    """What a model is and what it needs, without loading it. Raises NotFoundError for one that is not fetched yet."""
    store = Store()
    resolved = resolve(model, store)
    if resolved.path is None:
        if resolved.entry is not None:
            require_source(resolved.entry)
        raise NotFoundError(f"{resolved.name} is not in the store yet; fetch it with `freehold pull {resolved.name}`")
    with open_checkpoint(resolved.path) as checkpoint:
        formats, n_parameters = _formats(checkpoint)
        config = checkpoint.config
        context = config.get("max_position_embeddings")
        token_bytes = config_token_bytes(config)
        kv_bytes = token_bytes * context if token_bytes and isinstance(context, int) else None
        known = config.get("model_type") in FAMILIES
        loaded = residence(checkpoint) if known else Residence(checkpoint.n_bytes)
        return {
            "name": resolved.name,
            "path": str(resolved.path),
            "container": checkpoint.kind,
            "architecture": config.get("model_type"),
            "parameters": n_parameters,
            "bytes": checkpoint.n_bytes,
            "formats": formats,
            "layers": config.get("num_hidden_layers"),
            "context": context,
            "vocabulary": config.get("vocab_size"),
            "chat_template": checkpoint.chat_template is not None,
            "rounded": loaded.rounded,
            "packed_bytes": packed_size(resolved.path, store),
            "licence": _licence(resolved.entry.licence if resolved.entry else None, checkpoint),
            "memory": {
                "weights_bytes": loaded.n_bytes,
                "kv_bytes_per_token": token_bytes,
                "kv_bytes_full_context": kv_bytes,
                "working_bytes": SCRATCH_BYTES,
                "total_bytes": None if kv_bytes is None else loaded.n_bytes + kv_bytes + SCRATCH_BYTES,
                "budget_bytes": detect().memory_budget,
            },
        }


def render_model(facts: Facts) -> str:
    """`describe_model` as text."""
    memory = facts["memory"]
    formats = ", ".join(
        f"{name} ({entry['tensors']} tensors, {human_bytes(entry['bytes'])})"
        for name, entry in facts["formats"].items()
    )
    kv = memory["kv_bytes_full_context"]
    need = f"{human_bytes(memory['weights_bytes'])} weights + {human_bytes(memory['working_bytes'])} working memory"
    if kv is not None:
        need += f" + {human_bytes(kv)} KV cache at full context = {human_bytes(memory['total_bytes'])}"
    rows = [
        ("model", facts["name"]),
        ("path", facts["path"]),
        ("architecture", f"{facts['architecture']}, {facts['layers']} layers, vocabulary {facts['vocabulary']}"),
        ("parameters", human_count(facts["parameters"])),
        ("formats", formats),
        ("context", f"{facts['context']} tokens"),
        ("chat template", "yes" if facts["chat_template"] else "no"),
        *([("rounded here", f"{facts['rounded']}; --weights native keeps them")] if facts["rounded"] else []),
        ("packed weights", human_bytes(facts["packed_bytes"]) if facts["packed_bytes"] else "not kept yet"),
        ("licence", facts["licence"] or "not stated in the files"),
        ("memory", f"{need}; this process may use {human_bytes(memory['budget_bytes'])}"),
    ]
    return table(rows)


def describe_machine() -> Facts:
    """This machine, what Freehold will use of it, and every problem with its remedy. Takes a second of measuring."""
    chosen = settings.load()
    machine = detect(chosen)
    found = [dataclasses.asdict(problem) for problem in problems(machine, chosen)]
    store = Store(chosen.home)
    try:
        stored = store.models()
        found += [_damaged(model.name, model.problem) for model in stored if model.problem]
    except FreeholdError as error:
        stored = []
        found.append({"what": str(error), "remedy": "set FREEHOLD_HOME to a directory that you can read and write"})
    return {
        "freehold": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": {key: str(value) if key == "store" else value for key, value in dataclasses.asdict(machine).items()},
        "isa": _isa(found),
        "memory_budget_bytes": machine.memory_budget,
        "memory_bandwidth_gb_per_s": round(kernels.measure_bandwidth(machine.n_threads), 1),
        "store": {"path": str(store.root), "free_bytes": machine.disk_free, "models": [model.name for model in stored]},
        "problems": found,
    }


def render_machine(facts: Facts) -> str:
    """`describe_machine` as text, problems last."""
    machine, isa, store = facts["machine"], facts["isa"], facts["store"]
    free = "unknown" if store["free_bytes"] is None else human_bytes(store["free_bytes"])
    rows = [
        ("freehold", f"{facts['freehold']}, Python {facts['python']}, {facts['system']}"),
        ("processor", f"{machine['cpu']} ({machine['architecture']})"),
        ("kernels", f"{isa['why']}; available: {', '.join(isa['available'])}"),
        (
            "cores",
            f"{machine['n_threads']} used; {machine['n_cores_physical']} cores, {machine['n_cores_logical']} CPUs",
        ),
        *(("", limit) for limit in machine["limits"]),
        (
            "memory",
            f"{human_bytes(facts['memory_budget_bytes'])} may be used of {human_bytes(machine['memory_total'])}",
        ),
        *(("", limit) for limit in machine["memory_limits"]),
        ("bandwidth", f"{facts['memory_bandwidth_gb_per_s']} GB/s measured"),
        ("huge pages", machine["huge_pages"] or "not known"),
        ("store", f"{store['path']}, {free} free, models: {', '.join(store['models']) or 'none yet'}"),
    ]
    lines = [table(rows), ""]
    for problem in facts["problems"]:
        lines += [printable(f"problem: {problem['what']}"), printable(f"  remedy: {problem['remedy']}")]
    return "\n".join(lines) + ("" if facts["problems"] else "no problems found")


def _formats(checkpoint: Checkpoint) -> tuple[dict[str, dict[str, int]], int]:
    """Tensors and bytes by format, the most bytes first, and the number of parameters."""
    found: dict[str, dict[str, int]] = {}
    n_parameters = 0
    for name in checkpoint.names:
        tensor = checkpoint.get(name)
        entry = found.setdefault(tensor.format.name, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += tensor.n_bytes
        n_parameters += math.prod(tensor.shape)
        checkpoint.release(name)
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"])), n_parameters


def _licence(known: str | None, checkpoint: Checkpoint) -> str | None:
    stated: Mapping[str, Any] = checkpoint.gguf_metadata or {}
    value = known or stated.get("general.license")
    return value if isinstance(value, str) else None


def _isa(found: list[dict[str, str]]) -> Facts:
    """The kernel level and why; a level that was forced and cannot run joins the problems `found`."""
    available = kernels.available_isas()
    try:
        return {"level": kernels.isa(), "available": available, "why": kernels.explain_isa()}
    except FreeholdError as error:
        found.append({"what": str(error), "remedy": "unset FREEHOLD_ISA"})
        return {"level": None, "available": available, "why": "none: FREEHOLD_ISA names a level that cannot run here"}


def _damaged(name: str, problem: str | None) -> dict[str, str]:
    return {
        "what": f"model {name} in the store is damaged: {problem}",
        "remedy": f"freehold pull {name}, or freehold rm {name}",
    }


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))
