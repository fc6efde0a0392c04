"""The shape of the project: layers, sizes, names. Reads the sources and, but for two imports, runs none of them."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "freehold"
SOURCE_DIRS = ("src", "csrc", "tests", "bench", "docs", "examples")

LAYERS: dict[str, str] = {
    # Top first. A module may import what its row names and nothing else; a row may only name rows below it.
    "__main__": "cli",
    "cli": "terminal freehold benchmark runtime prepared hub kernels errors",
    "terminal": "freehold server loading benchmark runtime prepared reply budget planner shapes footprints hub "
    "hardware text models weights kernels settings errors",
    "server": "freehold loading runtime prepared reply budget hub hardware engine text settings core errors",
    "freehold": "loading runtime reply text errors",  # __init__.py: the public names, imported on first use
    "loading": "runtime rounding_report packed_cache footprints budget hub hardware models text "
    "weights settings core errors",
    "benchmark": "runtime budget engine kernels core errors",
    "runtime": "prepared exclusive reply budget engine text core errors",
    "prepared": "reply engine text core errors",
    "exclusive": "core errors",
    "reply": "engine text core errors",
    "rounding_report": "hub models kernels errors",
    "packed_cache": "hub weights kernels errors",
    "planner": "shapes calibration hub hardware models weights settings errors",
    "shapes": "footprints hardware models weights kernels formats errors",
    "footprints": "hardware weights kernels",
    "calibration": "hardware kernels formats core",
    "budget": "hardware core errors",
    "hub": "settings errors",
    "hardware": "settings errors",
    "engine": "core errors",  # token ids only
    "text": "core errors",
    "models": "weights kernels formats core errors",
    "weights": "formats errors",
    "kernels": "formats core errors",
    "settings": "errors",
    "formats": "",
    "core": "errors",
    "errors": "",
}

PUBLIC_NAMES = {
    "FreeholdError",
    "Grammar",
    "LocalModel",
    "Message",
    "NamedTool",
    "Reply",
    "Stream",
    "__version__",
    "load",
}

SOFT_LINES, MAX_LINES, MAX_FUNCTION_LINES = 350, 450, 70

FORBIDDEN = re.compile(r"/[w]ork/|/[t]mp/|/[r]oot/|\.\./[s]hared|[p]ypi\.org|[p]ythonhosted|[n]pmjs|[c]rates\.io")
"""Paths of somebody's machine and hosts of package registries, written so that this line does not match itself."""


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package; a stub stands for its extension module."""
    found = {}
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")]):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str) -> set[str]:
    """The modules of ours that a module imports anywhere: at its top, in functions, for types only."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            source = node.module or ""
            found |= {deeper if (deeper := f"{source}.{alias.name}") in modules() else source for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {module for module in found if module in modules()} - {name}


def layer(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def sources(*suffixes: str) -> list[Path]:
    """The project's own source files; tests/golden holds records of how data was made elsewhere."""
    files = (path for directory in SOURCE_DIRS for path in (ROOT / directory).rglob("*") if path.suffix in suffixes)
    return sorted(path for path in files if "golden" not in path.parts)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_imports_follow_the_layers() -> None:
    assert {layer(name) for name in modules()} == set(LAYERS)
    for name in modules():
        used = {layer(other) for other in imports(name)} - {layer(name)}
        assert used <= set(LAYERS[layer(name)].split()), f"{name} imports what its layer may not"


def test_layers_point_down() -> None:
    order = list(LAYERS)
    for name, allowed in LAYERS.items():
        for other in allowed.split():
            assert order.index(other) > order.index(name), f"{name} may not import {other}, which is not below it"


def test_no_import_cycles() -> None:
    list(graphlib.TopologicalSorter({name: imports(name) for name in modules()}).static_order())


def test_names_say_what_is_in_a_file() -> None:
    for path in sources(".py", ".h", ".cpp"):
        assert path.stem.lower() not in ("util", "utils", "helper", "helpers"), path
        assert path.name == path.name.lower(), path


def test_files_open_with_what_they_own() -> None:
    for path in sources(".py"):
        text = path.read_text("utf-8")
        assert not text or ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    for path in sources(".h", ".cpp"):
        assert path.read_text("utf-8").startswith("//"), f"{path} does not open with a comment"


def test_files_are_small() -> None:
    for path in sources(".py", ".pyi", ".h", ".cpp"):
        n_lines = len(path.read_text("utf-8").splitlines())
        assert n_lines <= MAX_LINES, f"{path} has {n_lines} lines, over {MAX_LINES}; split it"
        if n_lines > SOFT_LINES:
            warnings.warn(f"{path.relative_to(ROOT)} has {n_lines} lines, over {SOFT_LINES}", stacklevel=1)


def test_functions_are_small() -> None:
    for path in sources(".py"):
        for node in functions(path):
            n_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert n_lines <= MAX_FUNCTION_LINES, f"{path}: {node.name} has {n_lines} lines, over {MAX_FUNCTION_LINES}"


def test_the_architecture_names_every_file() -> None:
    """The table under "Files" of docs/architecture.md; a name without a folder is in that of the one before it."""
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    section = page.partition("`src/freehold/`")[2].partition("`csrc/`")[0]
    named = set()
    for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE):
        names = re.findall(r"`([\w/]+\.py)`", row)
        folder = names[0].rpartition("/")[0] if names else ""
        named |= {name if "/" in name or not folder else f"{folder}/{name}" for name in names}
    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert named <= files
    assert {name for name in files - named if not name.endswith("__init__.py")} == set()


def test_public_names() -> None:
    import freehold

    assert freehold.__all__ == sorted(PUBLIC_NAMES)


def test_importing_the_package_imports_nothing_slow() -> None:
    slow = {"numpy", "tokenizers", "jinja2", "rich", "typer", "prompt_toolkit"}
    code = "import sys, freehold; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert not slow & set(loaded.split())


def test_nothing_names_a_machine_or_a_registry() -> None:
    listing = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(listing, capture_output=True, timeout=60, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a git checkout")
    for path in (ROOT / name for name in names if name):
        if not path.is_file() or b"\0" in (data := path.read_bytes()):
            continue
        found = FORBIDDEN.search(data.decode("utf-8", "replace"))
        assert found is None, f"{path} holds {found and found[0]!r}"
