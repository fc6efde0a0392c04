"""From a model's name to a LocalModel: find or fetch the files, check that they fit, load, size the KV cache.

Owns the order of these steps, and what the publisher's files say about sampling and stopping. Knows no command line.
Weights and text share nothing but the open file, so a second thread prepares the text while the kernels pack the
weights: a small model answers a quarter sooner.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from freehold import settings
from freehold.budget import check_weights, kv_bytes_per_token, plan_memory
from freehold.core import SamplingParams
from freehold.errors import ModelFileError, RequestError, TemplateError
from freehold.footprints import footprint_of_checkpoint
from freehold.hardware import detect
from freehold.hub import DEFAULT_MODEL, Store, resolve
from freehold.hub.selection import shard_paths
from freehold.hub.usage import Use
from freehold.models import (
    Precision,
    check_choices,
    load_model,
    make_backend,
    measure_cost,
    residence,
    rounding_policy,
)
from freehold.models.loader import Backend, LoadedModel
from freehold.models.rounding import Rounding
from freehold.packed_cache import PackedCache
from freehold.rounding_report import CostNote, Measure, report_rounding
from freehold.runtime import LocalModel
from freehold.text.harmony_tokens import HarmonyTokens
from freehold.text.request import ChatFormat
from freehold.text.templates import ChatTemplate
from freehold.text.tokenizer import Tokenizer, load_tokenizer
from freehold.weights import Checkpoint, open_checkpoint

Progress = Callable[[str, int, int], None]
"""Called with what is being done ("downloading NAME", "loading NAME"), the bytes done and the bytes in all."""

Text = tuple[Tokenizer | None, ChatFormat | None, SamplingParams]
"""A checkpoint's tokenizer and chat format, if it has them, and the sampling that its publisher recommends."""

KV_ELEMENT_BYTES: Mapping[Precision, int] = {"reference": 4, "exact": 2, "fast": 2}
"""float32 for the oracle, bfloat16 otherwise."""

TURN_ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|user|>",  # GLM's turns have no end of their own: the next one's beginning stands for it
    "<|observation|>",
    "[EOT]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""Control tokens that end an assistant's turn in the chat formats we render. They are added to what the files name:
where one source of stop ids replaces another, models run on into a second turn."""

_SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def load(
    model: str | Path | None = None,
    *,
    precision: Precision = "exact",
    weights: Rounding = "auto",
    measure_rounding: bool = True,
    context: int | None = None,
    threads: int | None = None,
    conversations: int = 4,
    prefix_cache: bool = True,
    packed_cache: bool = True,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> LocalModel:
    """Load a model: a catalogue name (fetched on first use), a directory of config.json and safetensors, a .gguf file.

    `model` None takes FREEHOLD_MODEL, else the default. `precision`: "exact" is the default, "fast" multiplies
    weights of six bits and less with 8-bit activations, "reference" is the slow float32 oracle. `weights`: "q8" and
    "q4" round what is published in 16 or 32 bits, and tell `note` what that costs, measured at their first load unless
    `measure_rounding` is False; "native" rounds nothing, "auto" only attention and head of gpt-oss. `context` None
    takes the model's own, or what memory allows (see `LocalModel.plan.note`). The KV cache holds up to `conversations`
    full contexts, fewer if memory is short. `packed_cache` keeps packed weights on the disk for the next load, which
    `close()` waits for. Raises NotFoundError, DownloadError, StoreError, ModelFileError, UnsupportedError, or
    ResourceError with the numbers.
    """
    check_choices(precision, weights)
    chosen = settings.load()
    machine, store = detect(chosen), Store(chosen.home)
    name, path = _locate(model if model is not None else chosen.model or DEFAULT_MODEL, store, progress, note)
    use = Use(path, store)
    n_threads, budget = machine.n_threads if threads is None else threads, machine.memory_budget
    start = time.perf_counter()
    kept, policy = packed_cache and chosen.packed and precision != "reference", rounding_policy(weights)
    packed = PackedCache(path, store, policy, note) if kept else None
    backend = make_backend(precision, n_threads, 0 if packed and packed.is_warm else _file_bytes(path))
    with open_checkpoint(path) as checkpoint:
        made = residence(checkpoint, precision, weights)
        reserve = partial(footprint_of_checkpoint(checkpoint).reserve_bytes, made.n_bytes, n_threads=n_threads)
        check_weights(made.n_bytes, reserve(context=1), budget, name)
        loaded, (tokenizer, chat_format, defaults) = _load_both(checkpoint, backend, weights, progress, name, packed)
        load_seconds = time.perf_counter() - start
        measure = _measure(checkpoint, loaded, n_threads, progress, name) if measure_rounding else None
        with _closing(loaded):
            costs = CostNote(path, store, policy) if kept else None
            rounded = report_rounding(made.rounded, weights, tokenizer, measure, costs, note)
    with _closing(loaded):
        token_bytes = kv_bytes_per_token(loaded.kv_specs, KV_ELEMENT_BYTES[precision])
        need = {"weight_bytes": loaded.n_bytes, "working_bytes": reserve(context=context or loaded.max_context)}
        most = {"max_context": loaded.max_context, "budget": budget, "n_sequences": conversations}
        plan = plan_memory(**need, **most, token_bytes=token_bytes, context=context, what=name)
        local = LocalModel(
            loaded,
            tokenizer,
            chat_format,
            plan,
            max_sequences=max(64, conversations),
            prefix_cache=prefix_cache,
            name=name,
            path=path,
            sampling_defaults=defaults,
            n_threads=n_threads,
            load_seconds=load_seconds,
            step_bytes=loaded.step_bytes,
            on_close=partial(_close, loaded, use),
            packed=packed,
            rounded=rounded,
        )
    if packed:
        packed.start(lambda: local.idle_seconds)
    return local


def _load_both(
    checkpoint: Checkpoint,
    backend: Backend,
    rounding: Rounding,
    progress: Progress | None,
    name: str,
    packed: PackedCache | None,
) -> tuple[LoadedModel, Text]:
    """The weights, loaded here, and the text, loaded meanwhile."""
    text = _TextThread(checkpoint)
    try:
        shown = text.watched(progress, f"loading {name}")
        loaded = load_model(checkpoint, backend=backend, rounding=rounding, progress=shown, kept=packed)
    finally:
        text.join()  # also when the weights are at fault: the thread reads the file that is closed next
    with _closing(loaded):
        return loaded, text.result()


def _measure(
    checkpoint: Checkpoint, loaded: LoadedModel, n_threads: int, progress: Progress | None, name: str
) -> Measure:
    """What a text costs the loaded model, by its checkpoint, with progress."""
    shown = None if progress is None else partial(progress, f"measuring what rounding costs {name}")
    return partial(measure_cost, checkpoint, loaded, n_threads=n_threads, progress=shown)


@contextmanager
def _closing(loaded: LoadedModel) -> Iterator[None]:
    """Close the model if something is raised here."""
    try:
        yield
    except BaseException:
        loaded.close()
        raise


def load_text(checkpoint: Checkpoint) -> Text:
    """What the checkpoint says about text."""
    sources = checkpoint.tokenizer_json, checkpoint.gguf_metadata, checkpoint.tiktoken_model
    if sources == (None, None, None):
        return None, None, SamplingParams()  # weights alone serve `logits`
    tokenizer = load_tokenizer(
        checkpoint.tokenizer_json,
        checkpoint.gguf_metadata,
        checkpoint.config,
        tokenizer_config=checkpoint.tokenizer_config,
        tiktoken_model=checkpoint.tiktoken_model,
    )
    chat_format = _chat_format(checkpoint, tokenizer)
    wishes = checkpoint.generation_config
    if not wishes and chat_format is not None:
        wishes = chat_format.sampling
    defaults = sampling_defaults(wishes, tokenizer)
    if chat_format is not None:
        defaults = dataclasses.replace(defaults, stop_ids=defaults.stop_ids | chat_format.stop_ids)
    return tokenizer, chat_format, defaults


def _chat_format(checkpoint: Checkpoint, tokenizer: Tokenizer) -> ChatFormat | None:
    """Harmony where the tokenizer speaks it, whose template gives less, else the checkpoint's own template."""
    if HarmonyTokens.of(tokenizer) is not None:
        from freehold.text.harmony import Harmony  # nothing but gpt-oss needs it

        return Harmony(tokenizer)
    source = checkpoint.chat_template
    try:
        return None if source is None else ChatTemplate(source, tokenizer)
    except TemplateError as error:
        raise TemplateError(f"{checkpoint.path}: {error}") from error


def sampling_defaults(wishes: Mapping[str, Any], tokenizer: Tokenizer) -> SamplingParams:
    """The sampling that `wishes`, in generation_config's words, recommends, greedy where silent; all stop ids known."""
    stop_ids = frozenset(
        {
            *tokenizer.eos_ids,
            *_token_ids(wishes.get("eos_token_id"), tokenizer.vocab_size),
            *(tokenizer.special_ids[token] for token in TURN_ENDS if token in tokenizer.special_ids),
        }
    )
    params = SamplingParams(stop_ids=stop_ids)
    # Absent `do_sample` counts as true when a temperature is recommended: publishers leave it out and mean it.
    if not wishes.get("do_sample", "temperature" in wishes):
        return params
    values: dict[str, Any] = {"temperature": 1.0, **_numbers(wishes)}
    try:
        return dataclasses.replace(params, **values)
    except RequestError as error:
        raise ModelFileError(f"generation_config.json: {error}") from error


class _TextThread:
    """`load_text` in a thread of its own. An error there ends the loading of the weights at the next tensor."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="freehold-text", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loaded = load_text(self._checkpoint)
        except BaseException as error:
            self._error = error  # raised to the caller of load()

    def watched(self, progress: Progress | None, what: str) -> Callable[[int, int], None]:
        """A progress call for the weights that reports as `what`, and raises what went wrong here."""

        def report(done: int, total: int) -> None:
            if self._error is not None:
                raise self._error
            if progress is not None:
                progress(what, done, total)

        return report

    def join(self) -> None:
        self._thread.join()

    def result(self) -> Text:
        """What was loaded, after `join`."""
        if self._error is not None:
            raise self._error
        return self._loaded


def _close(loaded: LoadedModel, use: Use) -> None:
    loaded.close()
    use.release()


def _file_bytes(path: Path) -> int:
    """About how large the weights at `path` are, before the file is opened; 0 for a directory or an absent file."""
    try:
        return sum(part.stat().st_size for part in shard_paths(path)) if path.is_file() else 0
    except OSError:  # whatever it is, opening it says so
        return 0


def _locate(
    model: str | Path, store: Store, progress: Progress | None, note: Callable[[str], None] | None
) -> tuple[str, Path]:
    """The model's name and path, fetched if need be."""
    resolved = resolve(model, store)
    if resolved.path is not None:
        if resolved.kind == "stored":
            store.mark_used(resolved.name)
        return resolved.name, resolved.path
    # Imported here: only a first use fetches anything.
    from freehold.hub.sources import pull

    shown = None if progress is None else partial(progress, f"downloading {resolved.name}")
    return resolved.name, pull(resolved.name, store, progress=shown, note=note)


def _numbers(wishes: Mapping[str, Any]) -> dict[str, float]:
    """The sampling values of a generation_config, each checked to be a number; null counts as absent."""
    found = {key: wishes[key] for key in _SAMPLING_KEYS if wishes.get(key) is not None}
    for key, value in found.items():
        expected = int if key == "top_k" else (int, float)
        if isinstance(value, bool) or not isinstance(value, expected):
            raise ModelFileError(f"generation_config.json: {key} is {str(value)[:40]!r}; expected a number")
    return found


def _token_ids(value: Any, vocab_size: int) -> Iterable[int]:
    """generation_config's eos_token_id: absent, one id, or a list of ids."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise ModelFileError(
                f"generation_config.json: eos_token_id holds {str(token)[:40]!r}; "
                f"expected ids from 0 to {vocab_size - 1}"
            )
    return ids
