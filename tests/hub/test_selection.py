"""Which files of a repository are taken, by name alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import DownloadError, RequestError
from freehold.hub.manifest import name_problem
from freehold.hub.selection import flat_name, select, shard_names


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["config.json", "model.safetensors", "consolidated.safetensors"], ["config.json", "model.safetensors"]),
        (["config.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json"], None),
        (["config.json", "weights.safetensors", "adapter_model.safetensors"], ["config.json", "weights.safetensors"]),
        (["config.json", "model.safetensors", "tiktoken.model", "chat_template.jinja", "tokenizer_config.json"], None),
        (
            ["config.json", "model.safetensors", "original/config.json", "model.gguf"],
            ["config.json", "model.safetensors"],
        ),
    ],
)
def test_safetensors(names: list[str], taken: list[str] | None) -> None:
    found = select(names, None, "here")
    assert (sorted(found.names), found.main, found.format) == (sorted(taken or names), ".", "safetensors")


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("qwen3-0.6b-q8_0.gguf", "Q8_0"),
        ("m-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("m-IQ3_XXS.gguf", "IQ3_XXS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("m.BF16.gguf", "BF16"),
        ("m-f16.gguf", "F16"),
        ("Q4_K_M/m-00001-of-00001.gguf", "Q4_K_M"),
        ("Q6_K/m-Q6_K-00001-of-00001.gguf", "Q6_K"),
    ],
)
def test_quantisations_are_read_from_names(name: str, quant: str) -> None:
    found = select([name, "other-Q2_K.gguf"], quant, "here")
    assert (found.names, found.main) == ((name,), name.rpartition("/")[2])


def test_the_only_gguf_needs_no_word() -> None:
    assert select(["x.gguf", "mmproj-x-F16.gguf", "README.md"], None, "here").names == ("x.gguf",)


def test_choices_that_are_not_clear() -> None:
    with pytest.raises(RequestError, match=r"2 models of Q4_K_M; give the URL of one: a-Q4_K_M.gguf, b-Q4_K_M.gguf"):
        select(["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], None, "here")
    with pytest.raises(DownloadError, match=r"lacks 1 shards of Q4_0: a-Q4_0-00002-of-00002.gguf"):
        select(["a-Q4_0-00001-of-00002.gguf"], None, "here")
    with pytest.raises(DownloadError, match=r"no config.json"):
        select(["model.safetensors"], None, "here")
    with pytest.raises(DownloadError, match=r"no files"):
        select([], None, "here")


def test_shard_names() -> None:
    assert shard_names("m-00002-of-00003.gguf") == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for name in ("m.gguf", "m-00000-of-00000.gguf", "m-00000-of-00003.gguf", "m-00004-of-00003.gguf"):
        assert shard_names(name) == [name]


@given(st.text(st.sampled_from("a./\\:~\x00\n\u202e-") | st.characters(), max_size=20))
@settings(max_examples=200, deadline=None)
def test_what_is_taken_has_a_name_that_every_system_allows(name: str) -> None:
    try:
        found = select([f"{name}.gguf"], None, "here")
        flat = flat_name(found.names[0], "here")
    except DownloadError:
        return
    assert "/" not in flat
    assert name_problem(flat) is None
