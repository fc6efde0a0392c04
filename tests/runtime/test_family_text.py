"""Text files as each publisher lays them out: sampling, the ends of an answer, and prompts, from a directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.core import SamplingParams
from freehold.errors import ModelFileError, UnsupportedError
from freehold.loading import load_text
from freehold.text.chat import Message
from freehold.text.request import ChatFormat
from freehold.text.tokenizer import Tokenizer, load_tokenizer
from freehold.weights import open_checkpoint
from gguf_files import write_gguf
from kimi_files import CONTROLS, N_CONTROLS, write_kimi
from published_templates import library, source
from tiny_vocabulary import gguf_metadata

BEGIN, END = (f"<\uff5c{words}\u2581of\u2581sentence\uff5c>" for words in ("begin", "end"))
QWEN_ENDS, GLM_ENDS = ["<|im_end|>", "<|endoftext|>"], ["<|endoftext|>", "<|user|>", "<|observation|>"]
LLAMA_ENDS = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]

FAMILIES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], list[str]]] = [
    # template, tokenizer_config, config, generation_config (token texts stand for ids), ends
    (
        "qwen2_5",
        {"bos_token": None, "eos_token": "<|im_end|>"},
        {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>"},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
        | {"eos_token_id": QWEN_ENDS},
        QWEN_ENDS,
    ),
    (
        "qwen3",
        {"bos_token": None, "eos_token": "<|im_end|>"},
        {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>"},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": QWEN_ENDS},
        QWEN_ENDS,
    ),
    (
        "deepseek_v3_1",
        {"bos_token": {"content": BEGIN}, "eos_token": {"content": END}},
        {"bos_token_id": BEGIN, "eos_token_id": END},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": END},
        [END],
    ),
    (  # its config still names the BOS of the model that it was distilled into
        "r1_distill",
        {"bos_token": {"content": BEGIN}, "eos_token": {"content": END}},
        {"bos_token_id": END, "eos_token_id": END},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "bos_token_id": BEGIN, "eos_token_id": END},
        [END],
    ),
    ("glm4_6", {"eos_token": "<|endoftext|>"}, {"eos_token_id": GLM_ENDS}, {"eos_token_id": GLM_ENDS}, GLM_ENDS),
    ("glm4_6", {"eos_token": "<|endoftext|>"}, {"eos_token_id": "<|endoftext|>"}, {}, GLM_ENDS),
    (
        "llama3_own",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        {"bos_token_id": "<|begin_of_text|>", "eos_token_id": LLAMA_ENDS},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": LLAMA_ENDS},
        LLAMA_ENDS,
    ),
    ("llama3_own", {"bos_token": "<|begin_of_text|>"}, {"eos_token_id": "<|end_of_text|>"}, {}, LLAMA_ENDS),
    ("smollm3", {"eos_token": "<|im_end|>"}, {"eos_token_id": "<|im_end|>"}, {}, QWEN_ENDS),
    ("mistral_nemo", {"bos_token": "<s>", "eos_token": "</s>"}, {"eos_token_id": "</s>"}, {}, ["</s>"]),
]
LLAMA_KEYS: dict[str, Any] = {
    "llama__block_count": 1,
    "llama__context_length": 64,
    "llama__embedding_length": 192,
    "llama__feed_forward_length": 64,
    "llama__attention__head_count": 6,
    "llama__attention__layer_norm_rms_epsilon": 1e-5,
}
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")


def write_json(path: Path, values: dict[str, Any], ids: dict[str, int]) -> None:
    """The values, with an id in place of a token's text under keys that end in _token_id."""

    def numbered(value: Any) -> Any:
        return [ids[text] for text in value] if isinstance(value, list) else ids[value]

    values = {key: numbered(value) if key.endswith("_token_id") else value for key, value in values.items()}
    path.write_text(json.dumps(values), encoding="utf-8")


def write_weights(directory: Path) -> None:
    header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def loaded(directory: Path) -> tuple[Tokenizer, ChatFormat, SamplingParams]:
    write_weights(directory)
    with open_checkpoint(directory) as checkpoint:
        tokenizer, chat_format, sampling = load_text(checkpoint)
    assert tokenizer is not None
    assert chat_format is not None
    return tokenizer, chat_format, sampling


@pytest.mark.parametrize(("name", "named", "config", "generation", "ends"), FAMILIES)
def test_sampling_and_every_end_of_an_answer(
    tmp_path: Path,
    name: str,
    named: dict[str, Any],
    config: dict[str, Any],
    generation: dict[str, Any],
    ends: list[str],
) -> None:
    ids = {token.content: id for id, token in library(name).get_added_tokens_decoder().items()}
    (tmp_path / "tokenizer.json").write_text(library(name).to_str(), encoding="utf-8")
    write_json(tmp_path / "tokenizer_config.json", {**named, "chat_template": source(name)}, ids)
    write_json(tmp_path / "config.json", {"model_type": "llama", **config}, ids)
    write_json(tmp_path / "generation_config.json", generation, ids)
    tokenizer, chat_format, sampling = loaded(tmp_path)
    assert sampling.stop_ids == {ids[text] for text in ends}
    expected = {key: generation[key] for key in SAMPLING if key in generation}
    assert {key: getattr(sampling, key) for key in expected} == expected
    assert (sampling.temperature == 0) == (not expected)
    bos = named.get("bos_token")
    bos = bos["content"] if isinstance(bos, dict) else bos
    assert tokenizer.bos_id == (None if bos is None else ids[bos])
    prompt = chat_format.render([Message("user", "Hello")])
    assert (prompt[0] == tokenizer.bos_id) == (bos is not None)


@pytest.mark.parametrize(("kind", "adds"), [("LlamaTokenizerFast", True), ("PreTrainedTokenizerFast", False)])
def test_a_raw_prompt_begins_as_the_publisher_s_class_has_it(tmp_path: Path, kind: str, adds: bool) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(library("deepseek_v3_1").to_str(), encoding="utf-8")
    named = {"bos_token": {"content": BEGIN}, "add_bos_token": True, "tokenizer_class": kind}
    assert load_tokenizer(path, None, {}, tokenizer_config=named).add_bos == adds


def test_what_a_gguf_file_recommends(tmp_path: Path) -> None:
    sampling = {"temp": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "penalty_repeat": 1.05, "mirostat": 2}
    said: dict[str, Any] = {f"general__sampling__{key}": value for key, value in sampling.items()}
    tokenizer = {key.replace(".", "__"): value for key, value in gguf_metadata().items()}
    tensors = {"token_embd.weight": np.zeros((512, 192), np.float32)}
    path = write_gguf(tmp_path / "a.gguf", tensors, **LLAMA_KEYS, **said, **tokenizer)
    with open_checkpoint(path) as checkpoint:
        _, _, made = load_text(checkpoint)
    assert (made.temperature, made.top_k, made.top_p, made.min_p) == (0.6, 20, 0.95, 0.05)
    assert made.repetition_penalty == 1.05


def write_kimi_model(directory: Path, **changes: Any) -> int:
    """Kimi-K2's files, its ranks made up; gives how many there are."""
    n_ranks = len(write_kimi(directory, chat_template=source("kimi_k2"), **changes))
    config = {"model_type": "kimi_k2", "vocab_size": n_ranks + N_CONTROLS, "bos_token_id": n_ranks}
    (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": n_ranks + 1}), encoding="utf-8")
    generation = {"max_length": 131072, "eos_token_id": n_ranks + 2}
    (directory / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return n_ranks


def test_kimi_from_its_own_files(tmp_path: Path) -> None:
    n_ranks = write_kimi_model(tmp_path)
    tokenizer, chat_format, sampling = loaded(tmp_path)
    ends = {CONTROLS[id - n_ranks] for id in sampling.stop_ids}
    assert ends == {"[EOS]", "<|im_end|>", "[EOT]"}
    ids = chat_format.render([Message("system", "<|im_end|>"), Message("user", "你好 World")])
    said = "<|im_system|>system<|im_middle|><|im_end|><|im_end|><|im_user|>user<|im_middle|>你好 World<|im_end|>"
    assert tokenizer.decode(ids) == f"{said}<|im_assistant|>assistant<|im_middle|>"
    assert ids.count(n_ranks + 2) == 2
    assert tokenizer.encode("你好 World") == [tokenizer.encode("你好")[0], *tokenizer.encode(" World")]


def test_a_tokenizer_json_beside_the_ranks_is_preferred(tmp_path: Path) -> None:
    write_kimi_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text(library("kimi_k2").to_str(), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "kimi_k2"}', encoding="utf-8")
    (tmp_path / "generation_config.json").unlink()
    tokenizer, _, sampling = loaded(tmp_path)
    assert tokenizer.vocab_size < 500
    assert {tokenizer.decode([id]) for id in sampling.stop_ids} == {"[EOS]", "<|im_end|>", "[EOT]"}


def test_ranks_of_another_publisher_are_refused(tmp_path: Path) -> None:
    write_kimi_model(tmp_path, auto_map={"AutoTokenizer": ["tokenization_other.Other", None]})
    with pytest.raises(UnsupportedError, match=r"'tokenization_other.Other' is named\), which Freehold does not run"):
        loaded(tmp_path)


def test_names_that_are_no_texts_are_refused(tmp_path: Path) -> None:
    write_kimi_model(tmp_path, eos_token=7)
    with pytest.raises(ModelFileError, match=r"tokenizer_config.json: eos_token is .7.; expected a text"):
        loaded(tmp_path)
