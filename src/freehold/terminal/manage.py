"""What `rm`, `verify`, `du`, `prune`, `export` and `import` report, as plain data for --json and as text.

Owns the questions that are asked before something is deleted, and how the reports read. The work is `hub`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from freehold.errors import NotFoundError, StoreError
from freehold.hub import Store, StoredModel, resolve
from freehold.hub.catalog import find_entry, load_catalog, nearest
from freehold.hub.disk import Disposable, account, disposables, dispose
from freehold.hub.names import read_reference, stored_name
from freehold.hub.packed import packed_size
from freehold.hub.portable import export_model, import_model
from freehold.hub.store import check_name
from freehold.hub.usage import users
from freehold.hub.verify import Check, verify
from freehold.terminal.console import Progress, Stages, human_bytes, note, printable, table

Facts = dict[str, Any]


def find_stored(word: str, store: Store) -> StoredModel:
    """The stored model that `word` names: by its name in the store or the catalogue, or as it was pulled.

    Raises NotFoundError with the nearest names.
    """
    entry = find_entry(word)
    if entry is not None:
        name = entry.name
    elif "/" in word or ":" in word:
        name = stored_name(read_reference(word))
    else:
        name = check_name(word)
    model = store.find(name)
    if model is None:
        names = [stored.name for stored in store.models()]
        known = [*names, *(name for known in load_catalog().values() for name in (known.name, *known.aliases))]
        there = f"it holds {', '.join(names[:10])}" if names else "it is empty"
        raise NotFoundError(f"no model {word[:100]!r} in the store at {store.root}{nearest(word, known)}; {there}")
    return model


def is_confirmed(question: str, yes: bool) -> bool:
    """Whether to go on: asked on a terminal, where only "y" or "yes" means so; elsewhere the command alone decides."""
    if yes or not sys.stdin.isatty():
        return True
    print(f"{printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def remove_models(words: Sequence[str], yes: bool) -> list[Facts]:
    """Delete models, all of which must exist and not be in use; returns what became of each."""
    store = Store()
    found = {model.name: model for model in (find_stored(word, store) for word in words)}
    for name in found:
        if pids := users(name, store):
            who = " and ".join(map(str, pids))
            raise StoreError(f"{name} is in use by process {who}; end it first, then remove the model")
    removed = []
    for name, model in found.items():
        packed = packed_size(model.path, store) or 0
        part = f", {human_bytes(packed)} of it packed weights" if packed else ""
        if not is_confirmed(f"delete {name}, {human_bytes(model.n_bytes)}{part}?", yes):
            continue
        store.remove(name)
        note(f"removed {name}, {human_bytes(model.n_bytes)} freed{part}")
        removed.append({"name": name, "bytes": model.n_bytes, "packed_bytes": packed})
    return removed


def verify_models(words: Sequence[str]) -> list[Facts]:
    """Read the files of these models, or of all in the store, and compare them with what is known of them."""
    store = Store()
    models = [find_stored(word, store) for word in words] if words else store.models()
    rows = []
    for model in models:
        with Progress(f"verifying {model.name}") as progress:
            checks = verify(model, progress)
        # Damage that no file shows: a manifest that is missing, or that names what is not there.
        problem = model.problem if not any(check.is_damage for check in checks) else None
        rows.append(
            {
                "name": model.name,
                "ok": problem is None and not any(check.is_damage for check in checks),
                "problem": problem,
                "files": [_check_facts(check) for check in checks],
            }
        )
    return rows


def render_checks(rows: Sequence[Facts]) -> str:
    """One line per file."""
    if not rows:
        return "no models to verify"
    lines = []
    for row in rows:
        for file in row["files"]:
            lines.append((row["name"], file["name"], file["status"], _difference(file)))
        if row["problem"]:
            lines.append((row["name"], "", "damaged", row["problem"]))
    return table(lines)


def damage_note(rows: Sequence[Facts]) -> str | None:
    """What to do about damage; None if there is none."""
    damaged = [row["name"] for row in rows if not row["ok"]]
    if not damaged:
        return None
    remedy = " or ".join(f"`freehold {command} {damaged[0]}`" for command in ("pull", "rm"))
    return f"error: damaged: {', '.join(damaged)}; fetch it again or delete it: {remedy}"


def describe_usage() -> Facts:
    """What the store takes of the disk."""
    store = Store()
    found = account(store)
    return {
        "path": str(store.root),
        "models": [
            {
                "name": model.name,
                "bytes": model.n_bytes,
                "packed_bytes": packed_size(model.path, store) or 0,
                "last_used": int(model.last_used),
            }
            for model in found.models
        ],
        "packed_elsewhere": [asdict(one) for one in found.packed],
        "downloads": [{"name": name, "bytes": n_bytes} for name, n_bytes in found.downloads.items()],
        "debris_bytes": found.debris,
        "other_bytes": found.other,
        "total_bytes": found.total,
        "free_bytes": found.free,
    }


def render_usage(facts: Facts) -> str:
    """`describe_usage` as text, the largest first; what is nothing is left out."""
    rows = []
    for model in facts["models"]:
        packed = f"{human_bytes(model['packed_bytes'])} of it packed weights" if model["packed_bytes"] else ""
        rows.append((model["bytes"], model["name"], packed))
    for one in facts["packed_elsewhere"]:
        rows.append((one["n_bytes"], one["model"], "packed weights" if one["exists"] else "packed weights, model gone"))
    for download in facts["downloads"]:
        rows.append((download["bytes"], download["name"], "interrupted download"))
    rows.append((facts["debris_bytes"], "unfinished work", "of processes that run, or were killed"))
    rows.append((facts["other_bytes"], "everything else", ""))
    lines = [(human_bytes(size), *rest) for size, *rest in sorted(rows, key=lambda row: -row[0]) if size]
    free = "" if facts["free_bytes"] is None else f"{human_bytes(facts['free_bytes'])} free on this disk"
    return table([*lines, (human_bytes(facts["total_bytes"]), facts["path"], free)])


def prune(older_than: float | None, yes: bool, ask: bool) -> Facts:
    """Find what nobody needs any more, and delete it if `yes`, or if a person agrees (`ask`: whether to ask one)."""
    store = Store()
    found = disposables(store, older_than)
    total = sum(thing.n_bytes for thing in found)
    if found and not yes and ask and sys.stdin.isatty():
        note(render_disposables(found))
        yes = is_confirmed(f"delete all this, {human_bytes(total)}?", False)
    if yes:
        for thing in found:
            dispose(thing, store)
    return {
        "deleted": yes and bool(found),
        "bytes": total,
        "things": [{**asdict(thing), "path": str(thing.path)} for thing in found],
    }


def render_disposables(found: Sequence[Disposable]) -> str:
    """One line for each."""
    return table([(thing.kind, thing.name, human_bytes(thing.n_bytes), thing.reason) for thing in found])


def render_pruned(facts: Facts) -> str:
    """`prune` as text."""
    if not facts["things"]:
        return "nothing to prune"
    lines = table([(x["kind"], x["name"], human_bytes(x["n_bytes"]), x["reason"]) for x in facts["things"]])
    if facts["deleted"]:
        return f"{lines}\n{human_bytes(facts['bytes'])} freed"
    return f"{lines}\nnothing was deleted; --yes deletes all this, {human_bytes(facts['bytes'])}"


def export(model: str, target: Path, name: str | None) -> Facts:
    """Write an archive of a model."""
    store = Store()
    with Stages() as progress:
        record = export_model(resolve(model, store), store, target, name=name, progress=progress)
    return {
        "name": record.name,
        "path": str(target),
        "bytes": target.stat().st_size,
        "licence": record.licence,
        "files": [asdict(file) for file in record.files],
    }


def import_archive(archive: Path, name: str | None) -> Facts:
    """Put the model of an archive into the store."""
    store = Store()
    with Progress(f"importing {archive.name}") as progress:
        path = import_model(archive, store, name=name, progress=progress, note=note)
    model = store.find(path.name if path.parent == store.root / "models" else path.parent.name)
    assert model is not None, "it was just imported"
    return {"name": model.name, "path": str(path), "bytes": model.n_bytes, "format": model.format}


def _check_facts(check: Check) -> Facts:
    return {
        "name": check.name,
        "status": check.status,
        "found": None if check.found is None else {"size": check.found.size, "sha256": check.found.sha256},
        "expected": None if check.expected is None else {"size": check.expected.size, "sha256": check.expected.sha256},
    }


def _difference(file: Facts) -> str:
    found, expected = file["found"], file["expected"]
    if file["status"] == "unknown":
        return f"nothing to compare with; SHA-256 {found['sha256']}"
    if found is None or file["status"] == "ok":
        return ""
    if file["status"] == "wrong size":
        return f"{found['size']} bytes instead of {expected['size']}"
    return f"SHA-256 {found['sha256']} instead of {expected['sha256']}"
