"""From a request to an answer about to begin: checked, rendered and bound, with nothing computed yet.

The only place where text becomes tokens. Owns the order of the checks, so that all that can be wrong with a request is
known, and its length too, before it waits for its turn. Knows no protocol.
"""

from __future__ import annotations

import dataclasses
import difflib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from freehold.core import Constraint, Float32Array, LogitMask, SamplingParams
from freehold.engine import Engine
from freehold.errors import ContextError, NotFoundError, RequestError, UnsupportedError
from freehold.reply import Stream
from freehold.text.answer import AnswerParser
from freehold.text.grammar import Grammars
from freehold.text.grammar_source import unenforced_in
from freehold.text.plain_parser import PlainParser
from freehold.text.request import ChatFormat, ChatRequest
from freehold.text.stream import StopStrings

if TYPE_CHECKING:
    from freehold.text.tokenizer import Tokenizer


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


@dataclass(frozen=True)
class RawRequest:
    """A prompt without any chat template, text or token ids, and the conditions, as in ChatRequest."""

    prompt: str | Sequence[int]
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    mask: LogitMask | None = None
    namespace: str = ""


@dataclass(frozen=True)
class Prepared:
    """A prompt as token ids, and how its answer is chosen and read. `start` may be called more than once.

    params: max_tokens within the room that the context leaves, stop_ids complete; `silent_ids` are those of them that
    end an answer and mean nothing more. new_constraint gives what binds one answer, or None. effort: how hard the model
    is told to think, where its format says that. unenforced: what of the request's schemas is left to the model.
    """

    engine: Engine
    tokenizer: Tokenizer
    prompt: Sequence[int]
    params: SamplingParams
    stop: tuple[str, ...]
    silent_ids: frozenset[int]
    new_parser: Callable[[], AnswerParser]
    new_constraint: Callable[[], Constraint | None]
    namespace: str = ""
    effort: str | None = None
    unenforced: tuple[str, ...] = ()

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    def start(self, *, index: int = 0, on_ready: Callable[[], None] | None = None) -> Stream:
        """Generate answer number `index` to the request; with a seed, each number gets another one.

        `on_ready` is called from the engine's thread when `Stream.poll` has something new. Raises EngineError.
        """
        params = self.params
        if params.seed is not None and index:
            params = dataclasses.replace(params, seed=params.seed + index)
        generation = self.engine.submit(
            self.prompt, params, constraint=self.new_constraint(), namespace=self.namespace, on_ready=on_ready
        )
        return Stream(generation, self.tokenizer, self.new_parser(), StopStrings(self.stop), self.silent_ids)


class RequestDesk:
    """Prepares the requests to one model; thread-safe."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        chat_format: ChatFormat | None,
        defaults: SamplingParams,
        max_context: int,
        vocab_size: int,
        name: str,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._chat_format = chat_format
        self._defaults = defaults
        self._max_context = max_context
        self._vocab_size = vocab_size
        self._name = name
        self._grammars: Grammars | None = None  # made when first needed
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises NotFoundError for a checkpoint without one."""
        if self._tokenizer is None:
            raise NotFoundError(
                f"{self._name} has no tokenizer, so only token ids can be used with it (freehold logits); "
                f"for text put its publisher's tokenizer.json beside config.json"
            )
        return self._tokenizer

    def prepare(self, request: ChatRequest, mask: LogitMask | None = None) -> Prepared:
        """Check and render a request: everything that can be wrong with it is raised here, as by `chat`."""
        chat_format = self._chat_format
        if chat_format is None:
            raise UnsupportedError(
                f"{self._name} carries no chat template, so it cannot chat; give it whole prompts, by generate()"
            )
        if not request.messages:
            raise RequestError("messages is empty; expected at least one, like {'role': 'user', 'content': 'Hello'}")
        options = dict(request.template_options)
        if taken := options.keys() & {"messages", "add_generation_prompt", "tools"}:
            raise RequestError(
                f"template_options holds {min(taken)!r}, which the request sets; expected the format's own"
            )
        if request.reasoning_effort is not None:
            options["reasoning_effort"] = request.reasoning_effort
        elif request.default_effort is not None and chat_format.effort({}) is not None:
            options["reasoning_effort"] = request.default_effort
        effort = chat_format.effort(options)
        tools = request.tools or None
        prompt = chat_format.render(request.messages, add_generation_prompt=True, tools=tools, **options)
        source = chat_format.grammar(request, prompt)
        if source is not None and mask is not None:
            raise RequestError("mask cannot be combined with tools or an answer's grammar; leave one of them out")
        return self._prepare(
            prompt,
            lambda: chat_format.parser(tools=tools, prompt=prompt),
            chat_format.stop_ids,
            request.stop,
            request.max_tokens,
            request.sampling,
            self._constraints(source, mask),
            request.namespace,
            effort,
            () if source is None else tuple(unenforced_in(request)),
        )

    def prepare_raw(self, request: RawRequest) -> Prepared:
        """Check a raw prompt. Text is encoded with control tokens off, after a BOS where the model wants one."""
        prompt, tokenizer = request.prompt, self.tokenizer
        return self._prepare(
            self._encoded(prompt) if isinstance(prompt, str) else checked_ids(prompt, self._vocab_size),
            lambda: PlainParser(tokenizer),
            frozenset(),
            request.stop,
            request.max_tokens,
            request.sampling,
            self._constraints(None, request.mask),
            request.namespace,
        )

    def _encoded(self, text: str) -> list[int]:
        tokenizer = self.tokenizer
        start = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        return [*start, *tokenizer.encode(text)]

    def _prepare(
        self,
        prompt: list[int],
        new_parser: Callable[[], AnswerParser],
        format_ends: frozenset[int],
        stop: Sequence[str],
        max_tokens: int | None,
        sampling: Mapping[str, Any],
        new_constraint: Callable[[], Constraint | None],
        namespace: str,
        effort: str | None = None,
        unenforced: tuple[str, ...] = (),
    ) -> Prepared:
        """`format_ends` end the answer whatever else does, and say something to the parser."""
        room = self._max_context - len(prompt)
        if room < 1:
            raise ContextError(
                f"the prompt is {len(prompt)} tokens; the context is {self._max_context}, the answer included. "
                f"Shorten it, or load the model with a larger context",
                n_prompt=len(prompt),
                context=self._max_context,
            )
        StopStrings(stop)  # refuses what cannot be looked for
        params = self._params(sampling, max_tokens)
        if wrong := [id for id in params.logit_bias if not 0 <= id < self._vocab_size]:
            raise RequestError(f"logit_bias names token {wrong[0]}; expected ids from 0 to {self._vocab_size - 1}")
        ends, n_most = params.stop_ids | format_ends, min(params.max_tokens or room, room)
        return Prepared(
            engine=self._engine,
            tokenizer=self.tokenizer,
            prompt=prompt,
            params=dataclasses.replace(params, max_tokens=n_most, stop_ids=ends),
            stop=tuple(stop),
            silent_ids=ends - format_ends,
            new_parser=new_parser,
            new_constraint=new_constraint,
            namespace=namespace,
            effort=effort,
            unenforced=unenforced,
        )

    def _constraints(self, source: str | None, mask: LogitMask | None) -> Callable[[], Constraint | None]:
        """What binds each answer to a request. A grammar is compiled here once, for its errors."""
        if source is not None:
            grammars = self._made_grammars()
            grammars.compile(source)
            return lambda: grammars.compile(source)
        return lambda: None if mask is None else Masked(mask)

    def _made_grammars(self) -> Grammars:
        with self._lock:
            if self._grammars is None:
                assert self._chat_format is not None
                ends = self._defaults.stop_ids | self._chat_format.stop_ids
                self._grammars = Grammars(self.tokenizer, ends, self._vocab_size)
            return self._grammars

    def _params(self, sampling: Mapping[str, Any], max_tokens: int | None) -> SamplingParams:
        known = SamplingOptions.__annotations__
        unknown = [name for name in sampling if name not in known]
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(known)}"
            raise RequestError(f"unknown sampling option {unknown[0]!r}; {hint}")
        try:
            return dataclasses.replace(self._defaults, max_tokens=max_tokens, **sampling)
        except TypeError as error:
            raise RequestError(f"a sampling option has the wrong type, one of {dict(sampling)}: {error}") from error


def checked_ids(ids: Sequence[int], vocab_size: int) -> list[int]:
    """`ids` as a list of ints inside the vocabulary, not empty."""
    checked = list(ids)
    if not all(isinstance(token, (int, np.integer)) for token in checked):
        raise RequestError("token ids must be whole numbers")
    checked = [int(token) for token in checked]
    if not checked:
        raise RequestError("no token ids; expected at least one")
    low, high = min(checked), max(checked)
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise RequestError(f"token id {wrong} is outside the vocabulary; expected 0 to {vocab_size - 1}")
    return checked


class Masked:
    """The Constraint that a plain mask function is: it sees what was generated, and forces nothing."""

    def __init__(self, mask: LogitMask) -> None:
        self._mask = mask
        self._generated: list[int] = []

    def mask(self, logits: Float32Array) -> None:
        self._mask(self._generated, logits)

    def accept(self, id: int) -> Sequence[int]:
        self._generated.append(id)
        return ()
