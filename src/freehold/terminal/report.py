"""The facts behind `freehold ls` and `doctor`, as plain data for --json and as text.

Owns what is reported and how it reads. The facts come from the store, the checkpoint and the machine.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from pathlib import Path
from typing import Any

from freehold import __version__, kernels, settings
from freehold.errors import FreeholdError
from freehold.hardware import detect, problems
from freehold.hub import Store, StoredModel
from freehold.hub.catalog import can_fetch, load_catalog
from freehold.hub.packed import elsewhere, packed_size
from freehold.terminal.console import human_bytes, printable, table

Facts = dict[str, Any]


def list_models(everything: bool = False) -> list[Facts]:
    """The models of the store; with `everything`, those of the catalogue that are not in it as well."""
    store = Store()
    rows = [
        {
            "name": model.name,
            "bytes": model.n_bytes,
            "linked_bytes": _linked_bytes(model),
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
                        "fetchable": can_fetch(entry),
                    }
                )
    return rows


def render_models(rows: list[Facts]) -> str:
    """One line per model; says how to get one where there is none."""
    if not rows:
        return "no models yet; `freehold pull smollm2` fetches one, `freehold ls --all` shows what there is"
    lines = []
    for row in rows:
        size = row["bytes"] + row.get("linked_bytes", 0)
        lines.append((row["name"], human_bytes(size), row["format"], _state(row)))
    return table(lines)


def _state(row: Facts) -> str:
    if row["stored"]:
        packed = f", {human_bytes(row['packed_bytes'])} of it packed weights" if row["packed_bytes"] else ""
        linked = f", {human_bytes(row['linked_bytes'])} of it elsewhere" if row["linked_bytes"] else ""
        return row["problem"] or f"used {_day(row['last_used'])}{packed}{linked}"
    return "not fetched" if row["fetchable"] else "cannot be fetched; get its files yourself"


def _linked_bytes(model: StoredModel) -> int:
    """Bytes of the files that the store only links to."""
    if model.record is None or model.manifest is None:
        return 0
    return sum(file.size for file in model.record.files if file.name in model.manifest.links)


def packed_elsewhere() -> str | None:
    """One line on the packed weights that the store keeps of models outside of it; None if it keeps none."""
    store = Store()
    sizes = [packed_size(Path(origin), store) or 0 for origin in elsewhere(store).values()]
    if not any(sizes):
        return None
    return f"{human_bytes(sum(sizes))} more are packed weights of models elsewhere, in {store.root / 'packed'}"


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
