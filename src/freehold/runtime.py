"""A loaded model: the only place where text meets tokens.

Owns the life of model, engine and tokenizer together, and the Python interface: chat, generate, logits, tokenize.
Knows nothing of files, protocols or terminals: `loading` finds the parts and decides what fits.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, overload

import numpy as np

from freehold.budget import MemoryPlan
from freehold.core import KV_BLOCK, Batch, Float32Array, KVCacheLike, KVSpec, LogitMask, Model, SamplingParams
from freehold.engine import Engine, EngineConfig
from freehold.errors import (
    ContextError,
    EngineError,
    NotFoundError,
    RequestError,
    ResourceError,
    UnsupportedError,
)
from freehold.reply import Reply, Stream
from freehold.text.chat import AnswerParser, ChatFormat, Message
from freehold.text.plain_parser import PlainParser
from freehold.text.stream import StopStrings

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from freehold.text.tokenizer import Tokenizer

LOGIT_CHUNK_BYTES = 64 * 2**20
"""Logits `iter_logits` computes at once: rows enough to keep the matrix units busy, few enough to keep memory flat."""


class SamplingOptions(TypedDict, total=False):
    """Keywords of `chat` and `generate`; they mean what core.SamplingParams says. Absent ones take the model's own."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    n_logprobs: int | None


class PackedWeights(Protocol):
    """The keeping of packed weights for the next load, in the background."""

    @property
    def remark(self) -> str: ...

    def finish(self) -> None: ...

    def abandon(self) -> None: ...


class LocalModel:
    """A model in memory. Every method may be called from any thread; requests made at once are batched together.

    Use it as a context manager, or call `close()`: that ends running answers and gives the memory back.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer | None,
        chat_format: ChatFormat | None,
        plan: MemoryPlan,
        *,
        max_sequences: int = 64,
        prefix_cache: bool = True,
        name: str = "model",
        path: Path | None = None,
        sampling_defaults: SamplingParams | None = None,
        n_threads: int = 1,
        load_seconds: float = 0.0,
        step_bytes: int | None = None,
        on_close: Callable[[], None] | None = None,
        packed: PackedWeights | None = None,
        rounded: str = "",
    ) -> None:
        self.name = name
        self.path = path
        self._tokenizer = tokenizer
        self.chat_format = chat_format
        self.plan = plan
        self.max_context = plan.context
        self.vocab_size = model.vocab_size
        stop_ids = frozenset[int]() if tokenizer is None else tokenizer.eos_ids
        self.sampling_defaults = sampling_defaults or SamplingParams(stop_ids=stop_ids)
        self.n_threads = n_threads
        self.load_seconds = load_seconds
        self.step_bytes = plan.weight_bytes if step_bytes is None else step_bytes
        self._on_close = on_close
        self._packed = packed
        self.rounded = rounded
        self._model = _OneAtATime(model)
        config = EngineConfig(n_blocks=plan.n_blocks, max_sequences=max_sequences, prefix_cache=prefix_cache)
        self.engine = Engine(self._model, config)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises NotFoundError for a checkpoint without one, which serves `logits` only."""
        if self._tokenizer is None:
            raise NotFoundError(
                f"{self.name} has no tokenizer, so only token ids can be used with it (freehold logits); "
                f"for text put its publisher's tokenizer.json beside config.json"
            )
        return self._tokenizer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._packed is not None:
            self._packed.abandon()  # who leaves in an error or by Ctrl-C does not wait
        self.close()

    def settle(self) -> None:
        """Wait until packed weights are kept for the next load, if they are being kept; `close` waits as well."""
        if self._packed is not None:
            self._packed.finish()

    @property
    def load_remark(self) -> str:
        """Where the weights came from and what becomes of them, in a few words."""
        return "weights packed" if self._packed is None else self._packed.remark

    def close(self) -> None:
        """End running answers, wait until packed weights are kept, release the memory. A second time does nothing."""
        self.engine.close()
        try:
            self.settle()
        finally:
            self._release()

    def _release(self) -> None:
        self._model.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last forward pass ended; 0 while one runs, infinite before the first."""
        return self._model.idle_seconds

    @property
    def kv_specs(self) -> Sequence[KVSpec]:
        """What each layer keeps per past token."""
        return self._model.kv_specs

    @overload
    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        stop: str | Sequence[str] = (),
        max_tokens: int | None = None,
        mask: LogitMask | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Reply: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        stream: Literal[True],
        stop: str | Sequence[str] = (),
        max_tokens: int | None = None,
        mask: LogitMask | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Stream: ...

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        stream: bool = False,
        stop: str | Sequence[str] = (),
        max_tokens: int | None = None,
        mask: LogitMask | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Reply | Stream:
        """Answer a conversation, oldest message first: a Reply, or with `stream` the Stream of its events.

        A message is a Message or a mapping like {"role": "user", "content": "..."}. `stop` strings end the answer and
        are not part of it, and are looked for in visible text only; `max_tokens` None means as many as the context
        holds. Message text never becomes control tokens. `tools` are OpenAI tool objects; the reply holds the calls.
        `reasoning_effort` ("low", "medium" or "high") and `template_options` are for formats that know them. Raises
        RequestError, also for an option the model's format does not have, ContextError when it does not fit,
        TemplateError, UnsupportedError for a model without a template.
        """
        chat_format = self.chat_format
        if chat_format is None:
            raise UnsupportedError(
                f"{self.name} carries no chat template, so it cannot chat; use generate() with the whole prompt instead"
            )
        checked = [message if isinstance(message, Message) else Message.from_dict(message) for message in messages]
        if not checked:
            raise RequestError("messages is empty; expected at least one, like {'role': 'user', 'content': 'Hello'}")
        options = dict(template_options or {})
        if taken := options.keys() & {"messages", "add_generation_prompt", "tools"}:
            raise RequestError(f"template_options holds {min(taken)!r}, which chat() sets; expected the format's own")
        if reasoning_effort is not None:
            options["reasoning_effort"] = reasoning_effort
        prompt = chat_format.render(checked, add_generation_prompt=True, tools=tools, **options)
        answer = self._start(
            prompt, chat_format.parser(tools=tools), chat_format.stop_ids, stop, max_tokens, mask, sampling
        )
        return answer if stream else answer.reply()

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: Literal[False] = False,
        stop: str | Sequence[str] = (),
        max_tokens: int | None = None,
        mask: LogitMask | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Reply: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: Literal[True],
        stop: str | Sequence[str] = (),
        max_tokens: int | None = None,
        mask: LogitMask | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Stream: ...

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: bool = False,
        stop: str | Sequence[str] = (),
        max_tokens: int | None = None,
        mask: LogitMask | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Reply | Stream:
        """Continue a raw prompt, text or token ids, without any chat template. Otherwise like `chat`.

        Text is encoded with control tokens off, after a BOS where the model wants one; ids are taken as they are.
        """
        ids = self._raw_prompt(prompt) if isinstance(prompt, str) else self._checked_ids(prompt)
        answer = self._start(ids, PlainParser(self.tokenizer), frozenset(), stop, max_tokens, mask, sampling)
        return answer if stream else answer.reply()

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, no BOS added. With `special`, "<|im_end|>" is a control token: not for foreign text."""
        return self.tokenizer.encode(text, special=special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids; bytes that form no character become U+FFFD."""
        return self.tokenizer.decode(self._checked_ids(ids))

    def logits(self, ids: Sequence[int]) -> Float32Array:
        """Logits [n_tokens, vocab_size] after each position of `ids`, float32. Running answers go on undisturbed."""
        chunks = self.iter_logits(ids)
        n_bytes = 4 * len(ids) * self.vocab_size
        if n_bytes > self.plan.spare_bytes:
            raise ResourceError(
                f"the logits of {len(ids)} tokens take {n_bytes / 1e9:.2f} GB, but only "
                f"{self.plan.spare_bytes / 1e9:.2f} GB are left; read them in pieces with iter_logits()"
            )
        out = np.empty((len(ids), self.vocab_size), np.float32)
        start = 0
        for rows in chunks:
            out[start : start + len(rows)] = rows
            start += len(rows)
        return out

    def iter_logits(self, ids: Sequence[int]) -> Iterator[Float32Array]:
        """The rows of `logits` in order, some at a time [n_rows, vocab_size], so that memory stays bounded.

        Uses a KV cache of its own, and takes turns with running answers between the chunks.
        """
        checked = np.asarray(self._checked_ids(ids), np.int32)
        if len(checked) > self._model.max_context:
            raise ContextError(f"{len(checked)} ids; the model takes at most {self._model.max_context}")
        kv_bytes = len(checked) * self.plan.token_bytes
        if kv_bytes > self.plan.spare_bytes:
            raise ResourceError(
                f"{len(checked)} ids need {kv_bytes / 1e9:.2f} GB of KV cache beside the engine's, but only "
                f"{self.plan.spare_bytes / 1e9:.2f} GB are left; load the model with a smaller context"
            )
        return self._logit_chunks(checked)

    def _logit_chunks(self, ids: np.ndarray[Any, np.dtype[np.int32]]) -> Iterator[Float32Array]:
        kv = self._model.new_kv(-(-len(ids) // KV_BLOCK))
        n_chunk = max(1, min(512, LOGIT_CHUNK_BYTES // (4 * self.vocab_size)))
        for start in range(0, len(ids), n_chunk):
            end = min(start + n_chunk, len(ids))
            batch = Batch(
                tokens=ids[start:end],
                positions=np.arange(start, end, dtype=np.int32),
                seq_starts=np.array([0, end - start], np.int32),
                block_table=np.arange(-(-end // KV_BLOCK), dtype=np.int32)[None],
                logit_rows=np.arange(end - start, dtype=np.int32),
            )
            yield self._model.forward(batch, kv)

    def _raw_prompt(self, text: str) -> list[int]:
        start = [self.tokenizer.bos_id] if self.tokenizer.add_bos and self.tokenizer.bos_id is not None else []
        return [*start, *self.tokenize(text)]

    def _start(
        self,
        prompt: list[int],
        parser: AnswerParser,
        format_ends: frozenset[int],
        stop: str | Sequence[str],
        max_tokens: int | None,
        mask: LogitMask | None,
        sampling: SamplingOptions,
    ) -> Stream:
        """Generate after `prompt`. `format_ends` end the answer whatever else does, and say something to `parser`."""
        room = self.max_context - len(prompt)
        if room < 1:
            raise ContextError(
                f"the prompt is {len(prompt)} tokens; the context is {self.max_context}, the answer included. "
                f"Shorten it, or load the model with a larger context"
            )
        params = self._params(sampling, max_tokens)
        ends, n_most = params.stop_ids | format_ends, min(params.max_tokens or room, room)
        stops = StopStrings((stop,) if isinstance(stop, str) else tuple(stop))
        generation = self.engine.submit(
            prompt, dataclasses.replace(params, max_tokens=n_most, stop_ids=ends), mask=mask
        )
        return Stream(generation, self.tokenizer, parser, stops, ends - format_ends)

    def _params(self, sampling: SamplingOptions, max_tokens: int | None) -> SamplingParams:
        unknown = [name for name in sampling if name not in SamplingOptions.__annotations__]
        if unknown:
            near = difflib.get_close_matches(unknown[0], SamplingOptions.__annotations__, n=1)
            hint = (
                f"; did you mean {near[0]!r}?" if near else f"; expected {', '.join(SamplingOptions.__annotations__)}"
            )
            raise RequestError(f"unknown sampling option {unknown[0]!r}{hint}")
        try:
            return dataclasses.replace(self.sampling_defaults, max_tokens=max_tokens, **sampling)
        except TypeError as error:
            raise RequestError(f"a sampling option has the wrong type, one of {dict(sampling)}: {error}") from error

    def _checked_ids(self, ids: Sequence[int]) -> list[int]:
        """`ids` as a list of ints inside the vocabulary, not empty."""
        checked = list(ids)
        if not all(isinstance(token, (int, np.integer)) for token in checked):
            raise RequestError("token ids must be whole numbers")
        checked = [int(token) for token in checked]
        if not checked:
            raise RequestError("no token ids; expected at least one")
        low, high = min(checked), max(checked)
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            raise RequestError(f"token id {wrong} is outside the vocabulary; expected 0 to {self.vocab_size - 1}")
        return checked


class _OneAtATime:
    """A model whose steps exclude each other: the engine's thread and `iter_logits` share its scratch memory."""

    def __init__(self, model: Model) -> None:
        self._inner = model
        self._lock = threading.Lock()
        self._closed = False
        self._last = -math.inf  # when a step ended
        self.vocab_size = model.vocab_size
        self.max_context = model.max_context
        self.kv_specs = model.kv_specs

    def new_kv(self, n_blocks: int) -> KVCacheLike:
        return self._inner.new_kv(n_blocks)

    def forward(self, batch: Batch, kv: KVCacheLike) -> Float32Array:
        with self._lock:
            if self._closed:
                raise EngineError("the model is closed; load it again")
            logits = self._inner.forward(batch, kv)
            self._last = time.monotonic()
            return logits

    @property
    def idle_seconds(self) -> float:
        return 0.0 if self._lock.locked() else time.monotonic() - self._last

    def close(self) -> None:
        """Wait for the step under way; later ones are refused."""
        with self._lock:
            self._closed = True
