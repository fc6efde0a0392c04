"""docs/models.md says what the code says, names all that it supports, and reads as Markdown."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from markdown_it import MarkdownIt  # it comes with rich

from freehold.errors import UnsupportedError
from freehold.formats import FORMATS
from freehold.hub.catalog import load_catalog
from freehold.models import FAMILIES
from freehold.models.common import ROPE_KINDS, Config, read_rope
from freehold.weights.gguf_tensors import _ARCHITECTURES
from golden_models import FAMILIES as GOLDENS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "models.md"


def test_the_page_is_what_the_generator_writes() -> None:
    expected = runpy.run_path(str(PAGE.with_name("generate_models.py")))["render"]()
    assert PAGE.read_text("utf-8") == expected, "docs/models.md is out of date: run python docs/generate_models.py"


def test_all_that_is_supported_is_named() -> None:
    text = PAGE.read_text("utf-8")
    for names in (FAMILIES, _ARCHITECTURES, FORMATS, load_catalog(), GOLDENS, ROPE_KINDS):
        assert [name for name in names if f"| `{name}` |" not in text] == []


def test_tables_are_tables() -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(PAGE.read_text("utf-8"))
    kinds = [token.type for token in tokens]
    assert kinds.count("table_open") == len(re.findall(r"^\| --- ", PAGE.read_text("utf-8"), re.MULTILINE)) > 0
    assert not any("|" in token.content for token in tokens if token.type == "inline" and token.level == 1)


def test_what_it_points_to_is_there() -> None:
    text = PAGE.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (PAGE.parent / target).exists(), target
    for path in re.findall(r"`((?:src|tests|docs)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("kind", [*ROPE_KINDS, "dynamic", "longrope"])
def test_the_kinds_of_scaling_are_those_that_are_read(kind: str) -> None:
    scaling = {"rope_type": kind, "factor": 2.0, "original_max_position_embeddings": 64}
    own = {"default": ["rope_type"], "linear": ["rope_type", "factor"], "yarn": list(scaling)}.get(kind)
    values = {key: scaling[key] for key in own} if own else scaling | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = Config({"rope_scaling": values}, "config.json")
    if kind in ROPE_KINDS:
        assert len(read_rope(config, 16).inverse_frequencies) == 8
    else:
        with pytest.raises(UnsupportedError, match=f"{kind}.*implemented are {', '.join(ROPE_KINDS)}"):
            read_rope(config, 16)
