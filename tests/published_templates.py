"""Templates as publishers ship them, each over a small tokenizer that has its family's control tokens."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from freehold.text.templates import ChatTemplate
from freehold.text.tokenizer import Tokenizer, load_tokenizer
from tiny_vocabulary import tokenizer_json

GOLDEN = Path(__file__).parent / "golden"
PROMPTS: list[dict[str, Any]] = json.loads((GOLDEN / "chat_prompts.json").read_text(encoding="utf-8"))


def _deepseek(*words: str) -> list[str]:
    return [f"<\uff5c{each.replace(' ', chr(0x2581))}\uff5c>" for each in words]


_CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
_DEEPSEEK = [
    *_deepseek("begin of sentence", "end of sentence", "User", "Assistant", "tool calls begin", "tool calls end"),
    *_deepseek("tool call begin", "tool call end", "tool sep", "tool outputs begin", "tool outputs end"),
    *_deepseek("tool output begin", "tool output end"),
    *_TAGS[:2],
]
_KIMI = [
    *("[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "[EOT]", "<|im_system|>", "<|im_middle|>"),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
    *("<|tool_call_argument_begin|>", "<think>", "</think>"),
]
_GLM = [
    *("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", *_TAGS),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
]
_LLAMA = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
    "<|python_tag|>",
]
_MISTRAL = [
    *("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]"),
]
CONTROLS = {
    "qwen2_5": [*_CHATML, *_TAGS[2:4]],
    "qwen3": [*_CHATML, *_TAGS],
    "qwen3_coder": [*_CHATML, *_TAGS],
    "qwq": [*_CHATML, *_TAGS],
    "smollm3": [*_CHATML, *_TAGS],
    "deepseek_v3_1": _DEEPSEEK,
    "r1_distill": _DEEPSEEK,
    "glm4_6": _GLM,
    "kimi_k2": _KIMI,
    "kimi_k2_thinking": _KIMI,
    "llama3_own": _LLAMA,
    "mistral_nemo": _MISTRAL,
}


def source(name: str) -> str:
    return (GOLDEN / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def library(name: str) -> Library:
    """The `tokenizers` form: the small vocabulary, then the family's control tokens; tags are not flagged special."""
    full = Library.from_str(tokenizer_json())
    plain = json.loads(full.to_str())
    plain["added_tokens"] = []
    for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"):
        plain["model"]["vocab"].pop(text, None)
    vocab = plain["model"]["vocab"]
    plain["model"]["vocab"] = {text: id for id, text in enumerate(sorted(vocab, key=vocab.__getitem__))}
    full = Library.from_str(json.dumps(plain))
    tags = ("<think>", "</think>", "<tool", "</tool", "<arg_", "</arg_")
    full.add_tokens([AddedToken(t, special=not t.startswith(tags), normalized=False) for t in CONTROLS[name]])
    return full


@cache
def small_tokenizer(name: str) -> Tokenizer:
    special = next(case["special"] for case in PROMPTS if case["template"] == name)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tokenizer.json"
        path.write_text(library(name).to_str(), encoding="utf-8")
        config = {"bos_token": special["bos_token"] or None, "eos_token": special["eos_token"]}
        return load_tokenizer(path, None, {}, tokenizer_config=config)


@cache
def template(name: str) -> ChatTemplate:
    return ChatTemplate(source(name), small_tokenizer(name))
