"""A model that says what a test tells it to, with a byte tokenizer and a chat format: the runtime without weights.

It reads its own KV cache to see the sequence so far, so a wrong block table or position shows up as a wrong answer.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from freehold.budget import MemoryPlan
from freehold.core import KV_BLOCK, Batch, Float32Array, KVSpec
from freehold.errors import RequestError
from freehold.runtime import LocalModel
from freehold.text.answer import AnswerParser
from freehold.text.chat import Message
from freehold.text.grammar_source import rule_body
from freehold.text.harmony import Harmony
from freehold.text.harmony_grammar import turn_grammar
from freehold.text.harmony_parser import HarmonyParser
from freehold.text.harmony_system import effective_effort
from freehold.text.harmony_tokens import HarmonyTokens
from freehold.text.plain_parser import PlainParser
from freehold.text.request import ChatFormat, ChatRequest
from freehold.text.tokenizer import Tokenizer

BOS, SYSTEM, USER, ASSISTANT, EOS, SPLIT = range(256, 262)
START, END, MESSAGE, CHANNEL, CONSTRAIN, RETURN, CALL = range(262, 269)
VOCAB = 269
HARMONY = HarmonyTokens(START, END, MESSAGE, CHANNEL, CONSTRAIN, RETURN, CALL)

Answer = str | bytes | Sequence[int] | Callable[[str], bytes]


class ByteTokenizer:
    """One token per byte, control tokens above; SPLIT stands for the first two bytes of a three-byte character."""

    vocab_size = VOCAB
    bos_id = BOS
    add_bos = True
    eos_ids = frozenset({EOS})
    special_ids: Mapping[str, int] = {"<bos>": BOS, "<|im_end|>": EOS}

    def encode(self, text: str, special: bool = False) -> list[int]:
        if not special:
            return list(text.encode())
        pieces = re.split(f"({'|'.join(map(re.escape, self.special_ids))})", text)
        ids = ([self.special_ids[piece]] if piece in self.special_ids else list(piece.encode()) for piece in pieces)
        return [id for piece_ids in ids for id in piece_ids]

    def token_bytes(self, token_id: int) -> bytes:
        if token_id == SPLIT:
            return "€".encode()[:2]
        return bytes([token_id]) if token_id < 256 else b""

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")


class HarmonyByteTokenizer(ByteTokenizer):
    """The same, with harmony's control tokens."""

    special_ids: Mapping[str, int] = {
        **ByteTokenizer.special_ids,
        "<|start|>": START,
        "<|end|>": END,
        "<|message|>": MESSAGE,
        "<|channel|>": CHANNEL,
        "<|constrain|>": CONSTRAIN,
        "<|return|>": RETURN,
        "<|call|>": CALL,
    }

    def token_bytes(self, token_id: int) -> bytes:
        named = {id: text.encode() for text, id in self.special_ids.items()}
        return named.get(token_id) or super().token_bytes(token_id)


class RoleTemplate:
    """[BOS] then per message its role's token and its bytes, then ASSISTANT. Remembers what it was asked last.

    binds: whether answers keep to what the request says of them.
    """

    stop_ids = frozenset[int]()
    option_names: tuple[str, ...] = ()
    binds = True

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.options: dict[str, Any] = {}
        self.request: ChatRequest | None = None

    def effort(self, options: Mapping[str, Any]) -> str | None:
        return None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **options: Any) -> list[int]:
        if unknown := options.keys() - {"tools", *self.option_names}:
            raise RequestError(f"no option {min(unknown)!r}")
        self.messages, self.options = list(messages), options
        roles = {"system": SYSTEM, "developer": SYSTEM, "assistant": ASSISTANT}
        ids = [BOS]
        for message in messages:
            ids += [roles.get(message.role, USER), *message.content.encode()]
            if message.role == "assistant":
                ids.append(EOS)
        return [*ids, ASSISTANT] if add_generation_prompt else ids

    def parser(self, *, tools: Any = None, prompt: Sequence[int] = ()) -> AnswerParser:
        return PlainParser(cast(Tokenizer, ByteTokenizer()))

    def grammar(self, request: ChatRequest, prompt: Sequence[int] = ()) -> str | None:
        self.request = request
        return self._grammar(request) if self.binds else None

    def _grammar(self, request: ChatRequest) -> str | None:
        return None if request.answer is None else f"start: {rule_body(request.answer)}"


class HarmonyRoles(RoleTemplate):
    """The same prompts, answered in harmony."""

    stop_ids = HARMONY.stop_ids
    option_names = ("reasoning_effort",)

    def effort(self, options: Mapping[str, Any]) -> str | None:
        return effective_effort(options.get("reasoning_effort") or "medium")

    def parser(self, *, tools: Any = None, prompt: Sequence[int] = ()) -> AnswerParser:
        return HarmonyParser(cast(Tokenizer, HarmonyByteTokenizer()), HARMONY, tools)

    def _grammar(self, request: ChatRequest) -> str | None:
        return turn_grammar(request, HARMONY)


class PlainTalk(RoleTemplate):
    """Answers are text, whatever the request says of them."""

    binds = False


class SwitchedTalk(PlainTalk):
    """The same, with a switch for thinking."""

    option_names = ("enable_thinking",)


class HarmonyTalk(HarmonyRoles):
    """Answers are harmony, whatever the request says of them."""

    binds = False


class RealHarmony(Harmony):
    """gpt-oss's own format over bytes, which keeps the prompt it rendered last, and binds nothing."""

    prompt: list[int]
    tokenizer = HarmonyByteTokenizer()

    def __init__(self) -> None:
        super().__init__(cast(Tokenizer, self.tokenizer))

    def render(self, *args: Any, **options: Any) -> list[int]:
        self.prompt = super().render(*args, **options)
        return self.prompt

    def grammar(self, request: ChatRequest, prompt: Sequence[int] = ()) -> str | None:
        return None


def harmony(text: str) -> list[int]:
    """The ids of an answer written with control tokens by name."""
    return HarmonyByteTokenizer().encode(text, special=True)


class ScriptedModel:
    """Answers with `answer(prompt_text)` as bytes or token ids, then EOS; a prompt without roles counts upwards."""

    vocab_size = VOCAB
    kv_specs = (KVSpec("full", n_heads=1, k_dim=1, v_dim=1),)

    def __init__(self, answer: Answer, max_context: int = 512) -> None:
        self.max_context = max_context
        self.answer = answer
        self.steps = 0
        self.gate: threading.Semaphore | None = None  # when set, each step waits for a permit
        self.inside = 0
        self.overlapped = False

    def interrupt(self) -> None:
        """Its steps are short."""

    def new_kv(self, n_blocks: int) -> Any:
        return SimpleNamespace(n_blocks=n_blocks, tokens=np.full((n_blocks, KV_BLOCK), -1, np.int32))

    def forward(self, batch: Batch, kv: Any) -> Float32Array:
        self.inside += 1
        self.overlapped |= self.inside > 1
        if self.gate is not None:
            self.gate.acquire(timeout=5)
        self.steps += 1
        rows = set(batch.logit_rows.tolist())
        out = []
        for i in range(len(batch.seq_starts) - 1):
            blocks = batch.block_table[i]
            for t in range(batch.seq_starts[i], batch.seq_starts[i + 1]):
                position = int(batch.positions[t])
                kv.tokens[blocks[position // KV_BLOCK], position % KV_BLOCK] = batch.tokens[t]
                if t in rows:
                    used = blocks[: position // KV_BLOCK + 1]
                    out.append(self._logits(kv.tokens[used].reshape(-1)[: position + 1].tolist()))
        self.inside -= 1
        return np.array(out, np.float32).reshape(-1, VOCAB)

    def _logits(self, history: list[int]) -> Float32Array:
        row = np.zeros(VOCAB, np.float32)
        row[self._next(history)] = 10.0
        row[ord("?")] += 1.0
        return row

    def _next(self, history: list[int]) -> int:
        if ASSISTANT not in history:
            return (history[-1] + 1) % 256
        start = len(history) - history[::-1].index(ASSISTANT)
        prompt = bytes(token for token in history[:start] if token < 256).decode(errors="replace")
        answer = self.answer(prompt) if callable(self.answer) else self.answer
        ids = list(answer.encode() if isinstance(answer, str) else answer)
        said = len(history) - start
        return ids[said] if said < len(ids) else EOS


class ScriptedLocalModel(LocalModel):
    """A LocalModel around a ScriptedModel."""

    script: ScriptedModel

    @property
    def asked(self) -> ChatRequest:
        """The request that came to it last."""
        request = cast(RoleTemplate, self.chat_format).request
        assert request is not None
        return request


def scripted(
    answer: Answer = "Paris",
    *,
    context: int = 256,
    n_sequences: int = 2,
    budget: int = 10**9,
    template: bool = True,
    chat_format: Callable[[], Any] = RoleTemplate,
    **options: Any,
) -> ScriptedLocalModel:
    """A LocalModel that says `answer`, read as `chat_format` does; `options` are LocalModel's."""
    model = ScriptedModel(answer, max_context=max(context, 512))
    plan = MemoryPlan(context, n_sequences * -(-context // KV_BLOCK), weight_bytes=1000, token_bytes=4, budget=budget)
    tokenizer, formatter = cast(Tokenizer, ByteTokenizer()), cast(ChatFormat, chat_format())
    local = ScriptedLocalModel(model, tokenizer, formatter if template else None, plan, name="scripted", **options)
    local.script = model
    return local
