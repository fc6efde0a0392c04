"""Engine: runs many generations on one model, from one thread of its own.

Owns the thread, the KV storage and the life of every sequence from submit to its last token. Sees token ids and a
constraint on them, never text. Other threads talk to it through one inbox queue: a sequence in the inbox is either new
or marked as cancelled. The loop is receive, schedule, forward, advance, sample; a step that has become pointless is
interrupted, and then leaves no trace but KV that is written again.
"""

from __future__ import annotations

import atexit
import threading
import time
import traceback
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType

import numpy as np

from freehold.core import (
    KV_BLOCK,
    Constraint,
    FinishReason,
    Float32Array,
    Int32Array,
    Interrupted,
    KVCacheLike,
    Model,
    SamplingParams,
    Token,
)
from freehold.engine.blocks import BlockPool
from freehold.engine.generation import Generation
from freehold.engine.sampler import Choice, Sampler, Workspace
from freehold.engine.scheduler import Scheduler, Step
from freehold.engine.sequence import Sequence
from freehold.errors import ContextError, EngineError, RequestError


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of an engine. n_blocks: KV blocks of KV_BLOCK tokens, shared by all sequences.

    max_batch_tokens: tokens computed per step; more make prefill efficient, fewer make decode beside it smooth.
    max_sequences: sequences that run at once; others wait. prefix_cache: reuse the KV of equal prefixes.
    """

    n_blocks: int
    max_batch_tokens: int = 512
    max_sequences: int = 64
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("n_blocks", "max_batch_tokens", "max_sequences"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)!r}; expected a whole number >= 1")


@dataclass(frozen=True)
class EngineStats:
    """A snapshot for people and metrics; the counters only ever grow."""

    n_running: int
    n_waiting: int
    n_free_blocks: int  # blocks that hold a reusable prefix but no running sequence included
    n_prefix_hits: int  # sequences that found a part of their prompt in the cache
    n_cached_tokens: int  # prompt tokens whose KV was taken from the cache
    n_prefill_tokens: int  # computed, again after a preemption included
    n_decode_tokens: int
    n_preemptions: int


class Engine:
    """Generates for any number of threads; `submit` may be called from each of them. A context manager."""

    def __init__(self, model: Model, config: EngineConfig) -> None:
        self._model = model
        self._capacity = min(model.max_context, config.n_blocks * KV_BLOCK)  # tokens one sequence can hold
        self._scheduler = Scheduler(
            BlockPool(config.n_blocks),
            max_batch_tokens=config.max_batch_tokens,
            max_sequences=config.max_sequences,
            prefix_cache=config.prefix_cache,
        )
        self._space = Workspace(model.vocab_size)
        self._inbox: SimpleQueue[Sequence | None] = SimpleQueue()  # None closes; put never blocks, even in __del__
        self._lock = threading.Lock()  # guards the three fields below
        self._closed = False
        self._cause: BaseException | None = None
        self._n_unfinished = 0
        self._step: Step | None = None  # under way
        kv = model.new_kv(config.n_blocks)
        self._thread = threading.Thread(target=self._run, args=(kv,), name="freehold-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # kernels must not run while the interpreter is torn down

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(
        self,
        prompt: Ids[int],
        params: SamplingParams,
        *,
        constraint: Constraint | None = None,
        namespace: str = "",
        on_ready: Callable[[], None] | None = None,
    ) -> Generation:
        """Queue a prompt of token ids and return at once.

        Only prompts of one `namespace` share cached prefixes. max_tokens is clamped to the room the context leaves.
        `on_ready` is called from the engine's thread whenever the generation has something new to be read; it must not
        block or raise.
        Raises RequestError for bad ids or parameters, ContextError for a prompt that cannot fit, EngineError when
        the engine is closed or its thread died.
        """
        ids = _checked_prompt(prompt, self._model.vocab_size)
        room = self._capacity - len(ids)
        if room < 1:
            raise ContextError(self._no_room(len(ids)), n_prompt=len(ids), context=self._capacity)
        sequence = Sequence(
            ids,
            Sampler(params, ids, self._model.vocab_size, constraint),
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            stop_ids=params.stop_ids,
            namespace=namespace,
            on_ready=on_ready,
        )
        sequence.submitted_at = time.perf_counter()
        with self._lock:
            if self._closed:
                raise self._closed_error() from self._cause
            self._n_unfinished += 1
            self._inbox.put(sequence)
        return Generation(sequence, self._cancel)

    def close(self) -> None:
        """Cancel every generation and wait for the thread, which ends its step early. Safe to call twice."""
        with self._lock:
            self._closed = True
        self._inbox.put(None)
        if self._step is not None:
            self._model.interrupt()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        atexit.unregister(self.close)

    @property
    def stats(self) -> EngineStats:
        """Counts as of now; taken while a step may be running, so they can differ by one step."""
        scheduler = self._scheduler
        n_running = len(scheduler.running)
        return EngineStats(
            n_running=n_running,
            n_waiting=max(self._n_unfinished - n_running, 0),
            n_free_blocks=scheduler.pool.n_free,
            n_prefix_hits=scheduler.n_prefix_hits,
            n_cached_tokens=scheduler.n_cached_tokens,
            n_prefill_tokens=scheduler.n_prefill_tokens,
            n_decode_tokens=scheduler.n_decode_tokens,
            n_preemptions=scheduler.n_preemptions,
        )

    def _run(self, kv: KVCacheLike) -> None:
        cause: BaseException | None = None
        try:
            while self._receive():
                step = self._scheduler.schedule()
                self._step = step
                try:
                    logits = self._model.forward(step.batch, kv)
                except Interrupted:
                    continue  # nothing has changed but what is in the inbox
                finally:
                    self._step = None
                self._scheduler.advance(step)
                self._sample(step.sampled, logits)
        except BaseException as error:  # whatever ends this thread, nobody may be left waiting for it
            cause = error
            traceback.clear_frames(error.__traceback__)  # its locals would keep the KV storage in memory
        del kv
        self._end_all(cause)

    def _cancel(self, sequence: Sequence) -> None:
        """Tell the engine's thread; the step under way ends early if hardly anybody else wants it. From any thread."""
        self._inbox.put(sequence)
        step = self._step
        if step is not None and step.is_unwanted:
            self._model.interrupt()

    def _receive(self) -> bool:
        """Take in what other threads sent; wait for it if there is no work. False once the engine is to close."""
        while not self._scheduler.has_work or not self._inbox.empty():
            sequence = self._inbox.get()
            if sequence is None:
                return False
            if sequence.cancelled:
                self._end(sequence, "cancelled", None)
            else:
                self._scheduler.add(sequence)
        return True

    def _sample(self, sequences: list[Sequence], logits: Float32Array) -> None:
        assert logits.shape == (len(sequences), self._model.vocab_size), "the model returned logits of another shape"
        for sequence, row in zip(sequences, logits, strict=True):
            position = sequence.n_tokens - 1
            try:
                choice = sequence.sampler.sample(row, position, self._space)
                forced = sequence.sampler.follow(choice.id, position)
            except EngineError as error:
                self._end(sequence, "error", error)
                continue
            sequence.last_token_at = time.perf_counter()
            if not sequence.generated:
                sequence.first_token_at = sequence.last_token_at
            certain = None if choice.logprob is None else 0.0  # the log-probability of what had to come
            self._append(sequence, [choice, *(Choice(id, certain) for id in forced)])

    def _append(self, sequence: Sequence, choices: list[Choice]) -> None:
        """Add tokens to a sequence, up to the one that ends it, and send them."""
        tokens = []
        for choice in choices:
            sequence.append(choice.id)
            finish: FinishReason | None = None
            if choice.id in sequence.stop_ids:
                finish = "stop"
            elif len(sequence.generated) == sequence.max_tokens:
                finish = "length"
            tokens.append(Token(choice.id, choice.logprob, choice.top, finish))
            if finish is not None:
                self._end(sequence, finish, *tokens, None)
                return
        sequence.deliver(tokens)

    def _end(self, sequence: Sequence, finish: FinishReason, *last: Token | EngineError | None) -> None:
        """Free what the sequence holds and send its last items; whoever reads them finds `finish` already set."""
        if sequence.finish is not None:
            return  # cancelled just after it ended by itself
        self._scheduler.remove(sequence, keep_cache=finish != "error")
        with self._lock:
            self._n_unfinished -= 1
        sequence.finish = finish
        sequence.deliver(last)

    def _end_all(self, cause: BaseException | None) -> None:
        with self._lock:
            self._closed = True
            self._cause = cause
        sequences = [*self._scheduler.running, *self._scheduler.waiting]
        while True:
            try:
                sequence = self._inbox.get_nowait()
            except Empty:
                break
            if sequence is not None:
                sequences.append(sequence)
        for sequence in sequences:
            if cause is None or sequence.cancelled:
                self._end(sequence, "cancelled", None)
            else:
                error = self._closed_error()
                error.__cause__ = cause
                self._end(sequence, "error", error)

    def _closed_error(self) -> EngineError:
        if self._cause is None:
            return EngineError("the engine is closed; create a new one")
        return EngineError(f"the engine stopped: {type(self._cause).__name__}: {self._cause}; load the model again")

    def _no_room(self, n_prompt: int) -> str:
        if self._capacity < self._model.max_context:
            holds = f"the KV cache holds {self._capacity} tokens; shorten the prompt or give the cache more memory"
        else:
            holds = f"the model's context holds {self._capacity} tokens; shorten the prompt"
        return f"the prompt has {n_prompt} tokens and needs room for at least one more, but {holds}"


def _checked_prompt(prompt: Ids[int], vocab_size: int) -> Int32Array:
    if len(prompt) == 0:
        raise RequestError("the prompt is empty; expected at least one token id")
    ids = np.asarray(prompt)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise RequestError(f"the prompt is {ids.dtype} of shape {ids.shape}; expected one row of integers")
    bad = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if len(bad):
        raise RequestError(
            f"prompt token {bad[0]} is {ids[bad[0]]}; expected ids from 0 to {vocab_size - 1}: "
            "the tokenizer and the model do not belong together"
        )
    return ids.astype(np.int32)
