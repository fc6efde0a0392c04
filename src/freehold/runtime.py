"""A loaded model: `LocalModel`, the Python interface.

Owns the life of model, engine and tokenizer together, and the methods: chat, generate, logits, tokenize. What a request
is made into is `prepared`'s matter. Knows nothing of files, protocols or terminals: `loading` finds the parts and
decides what fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import numpy as np

from freehold.budget import MemoryPlan
from freehold.core import Float32Array, KVSpec, LogitMask, Model, SamplingParams
from freehold.engine import Engine, EngineConfig
from freehold.errors import ContextError, ResourceError
from freehold.exclusive import ExclusiveModel
from freehold.prepared import Prepared, RawRequest, RequestDesk, SamplingOptions, checked_ids
from freehold.reply import Reply, Stream
from freehold.text.chat import Message
from freehold.text.request import ChatFormat, ChatRequest, Grammar, ToolChoice

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from freehold.text.tokenizer import Tokenizer


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
        self._model = ExclusiveModel(model)
        config = EngineConfig(n_blocks=plan.n_blocks, max_sequences=max_sequences, prefix_cache=prefix_cache)
        self.engine = Engine(self._model, config)
        self._desk = RequestDesk(
            self.engine, tokenizer, chat_format, self.sampling_defaults, plan.context, model.vocab_size, name
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises NotFoundError for a checkpoint without one, which serves `logits` only."""
        return self._desk.tokenizer

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
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: ToolChoice = "auto",
        answer: Grammar | None = None,
        enforce: bool = True,
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
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: ToolChoice = "auto",
        answer: Grammar | None = None,
        enforce: bool = True,
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
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: ToolChoice = "auto",
        answer: Grammar | None = None,
        enforce: bool = True,
        reasoning_effort: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Reply | Stream:
        """Answer a conversation, oldest message first: a Reply, or with `stream` the Stream of its events.

        A message is a Message or a mapping like {"role": "user", "content": "..."}; its text never becomes control
        tokens. `stop` strings end the answer and are not part of it, and are looked for in visible text only;
        `max_tokens` None means as many as the context holds. `tools` are OpenAI tool objects; the reply holds the
        calls, which keep to the tools offered and their schemas, unless `enforce` is False. `tool_choice` is "auto",
        "none", "required" or a NamedTool; `answer` binds the visible answer to a Grammar. `reasoning_effort` ("low",
        "medium" or "high") and `template_options` are for formats that know them.

        Raises RequestError, also for an option the model's format does not have, ContextError when it does not fit,
        TemplateError, UnsupportedError for a model without a template.
        """
        request = ChatRequest(
            messages=tuple(m if isinstance(m, Message) else Message.from_dict(m) for m in messages),
            tools=tuple(tools),
            tool_choice=tool_choice,
            answer=answer,
            enforce=enforce,
            reasoning_effort=reasoning_effort,
            template_options=template_options or {},
            stop=_strings(stop),
            max_tokens=max_tokens,
            sampling=sampling,
        )
        started = self.prepare(request, mask=mask).start()
        return started if stream else started.reply()

    def prepare(self, request: ChatRequest, *, mask: LogitMask | None = None) -> Prepared:
        """Check and render a request: everything that can be wrong with it is raised here, as by `chat`."""
        return self._desk.prepare(request, mask)

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
        request = RawRequest(prompt, _strings(stop), max_tokens, sampling, mask)
        started = self.prepare_raw(request).start()
        return started if stream else started.reply()

    def prepare_raw(self, request: RawRequest) -> Prepared:
        """Check a raw prompt, as `prepare` does a conversation."""
        return self._desk.prepare_raw(request)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, no BOS added. With `special`, "<|im_end|>" is a control token: not for foreign text."""
        return self.tokenizer.encode(text, special=special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids; bytes that form no character become U+FFFD."""
        return self.tokenizer.decode(checked_ids(ids, self.vocab_size))

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
        checked = np.asarray(checked_ids(ids, self.vocab_size), np.int32)
        if len(checked) > self._model.max_context:
            most = self._model.max_context
            raise ContextError(
                f"{len(checked)} ids; the model takes at most {most}", n_prompt=len(checked), context=most
            )
        kv_bytes = len(checked) * self.plan.token_bytes
        if kv_bytes > self.plan.spare_bytes:
            raise ResourceError(
                f"{len(checked)} ids need {kv_bytes / 1e9:.2f} GB of KV cache beside the engine's, but only "
                f"{self.plan.spare_bytes / 1e9:.2f} GB are left; load the model with a smaller context"
            )
        return self._model.iter_logits(checked)


def _strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)
