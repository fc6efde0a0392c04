"""Does a model fit a device, and how fast will it run there? Arithmetic on a model's shape and a device's rates.

Owns the formulas (docs/planner.md) that every command uses: memory, decode, prefill, what limits each. Pure: no files,
no measuring, no chips of its own; shapes.py makes a ModelShape, devices.py and this machine's calibration a Device.
A speed is an interval, never a point. Rates are tokens per second of all sequences together; times are in seconds,
sizes in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from freehold.hardware.footprint import Footprint

ANY = "*"
"""In a device's rates: every format without a rate of its own."""

CORRELATED = 1 / 3
"""So much of a new sequence's routing is news, at the least: the fast end of a batch's interval counts the experts of
1 + (B - 1) / 3 sequences. Independent routing, the slow end, overestimates what similar texts read."""

Verdict = Literal["PASS", "FAIL", "UNKNOWN"]


@dataclass(frozen=True)
class Amount:
    """Weights: their bytes, and how many numbers those are."""

    n_bytes: float = 0
    n_parameters: float = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.n_bytes + other.n_bytes, self.n_parameters + other.n_parameters)

    def __mul__(self, factor: float) -> Amount:
        return Amount(self.n_bytes * factor, self.n_parameters * factor)


Amounts = Mapping[str, Amount]
"""By the name of the format."""


@dataclass(frozen=True)
class AttentionLayers:
    """Layers whose attention is of one kind. `kv_elements` and `pair_flops` are of one layer.

    kv_elements: numbers kept per past token. pair_flops: operations per pair of a new token and one it attends to.
    prompt_flops: the same in prefill, where a latent row is taken apart first. latent: keys and values of all heads in
    one row, which devices cannot share out (MLA).
    """

    kind: Literal["full", "window", "latent"]
    n_layers: int
    kv_elements: int
    pair_flops: float
    prompt_flops: float
    window: int | None = None
    n_kv_heads: int = 1

    def reach(self, context: float) -> float:
        """Past tokens that a token at position `context` attends to."""
        return context if self.window is None else min(context, self.window)


@dataclass(frozen=True)
class ModelShape:
    """A model as the planner sees it.

    always: weights that every token needs; an embedding that is the head as well belongs here. head: of these the
    format and the parameters of what makes logits, which of a prompt only the last token needs. experts: the routed
    ones, of which a token needs top_k of n_experts. table: an embedding of which a token reads one row. residue: bytes
    of `always`, `experts` and `table` that take no memory of their own once loaded, as rows left in a file, less what
    takes more than it is stored in. footprint: of Freehold's memory beside weights and KV cache.
    """

    name: str
    format: str
    n_layers: int
    always: Amounts
    experts: Amounts
    table: Amount
    attention: tuple[AttentionLayers, ...]
    max_context: int
    hidden: int
    vocabulary: int
    n_experts: int = 0
    top_k: int = 0
    kv_bits: int = 16
    residue: float = 0
    head: tuple[str, float] = ("", 0)
    footprint: Footprint = field(default_factory=Footprint)

    @property
    def weight_bytes(self) -> int:
        """Of memory, for all weights."""
        stored = sum(part.n_bytes for part in (*self.always.values(), *self.experts.values(), self.table))
        return int(stored - self.residue)

    @property
    def n_parameters(self) -> int:
        return int(sum(part.n_parameters for part in (*self.always.values(), *self.experts.values(), self.table)))

    @property
    def n_active(self) -> int:
        """Numbers that one token is multiplied with."""
        return int(sum(part.n_parameters for part in self.read(1).values()))

    def distinct_experts(self, n_tokens: float) -> float:
        """Expected experts of a layer that n_tokens need, if each chooses by itself and all are equally likely."""
        if not self.n_experts:
            return 0.0
        return self.n_experts * -math.expm1(n_tokens * math.log1p(-min(self.top_k / self.n_experts, 1 - 1e-12)))

    def read(self, n_tokens: float) -> dict[str, Amount]:
        """What a step of n_tokens reads of the weights, by format."""
        found, share = dict(self.always), self.share(n_tokens)
        for name, amount in self.experts.items():
            found[name] = found.get(name, Amount()) + amount * share
        return found

    def share(self, n_tokens: float) -> float:
        """Of the routed experts, the part that n_tokens need."""
        return self.distinct_experts(n_tokens) / self.n_experts if self.n_experts else 0.0

    @property
    def kv_token_bytes(self) -> int:
        """Of memory per token of context, in all layers: caches in blocks keep windowed layers at full length."""
        return sum(part.n_layers * part.kv_elements for part in self.attention) * self.kv_bits // 8

    def kv_read(self, context: float) -> float:
        """Bytes of keys and values that one sequence's step reads at `context`; windows read their window only."""
        elements = sum(part.n_layers * part.kv_elements * part.reach(context) for part in self.attention)
        return elements * self.kv_bits / 8

    def attention_flops(self, context: float, *, prompt: bool = False) -> float:
        """Of one new token at `context`, one of many in a prompt or by itself."""
        return sum(
            part.n_layers * (part.prompt_flops if prompt else part.pair_flops) * part.reach(context)
            for part in self.attention
        )


@dataclass(frozen=True)
class Device:
    """What the arithmetic needs to know of a processor, or of `count` equal ones that share the model.

    memory: bytes of one, None where that is not known. reserve: bytes that others need of it, from the least to the
    most. usable: parts of `memory` that the model may have, from doubtful to safe. n_threads: Freehold's on this
    machine, whose reserve a model's footprint tells; 0 elsewhere.
    read_rates: bytes/s of weights that decode reaches, by their format. product_rates: FLOP/s that prefill reaches, by
    the weights' format; grouped_rates, if given: those of experts, of which each sees few tokens of a step. kv_rate,
    attention_rate: the same for attention; decode_attention, if given: FLOP/s of attention in decode.
    overhead: seconds per layer and step, of launching and waiting. chunk: tokens of prefill at once. pair_latency:
    seconds of one exchange between devices; link: bytes/s from one to the others.
    decode_spread, prefill_spread: factors that a truth may be off either way. basis: what the rates rest on.
    """

    name: str
    memory: float | None
    read_rates: Mapping[str, float]
    product_rates: Mapping[str, float]
    kv_rate: float
    attention_rate: float
    overhead: float
    decode_spread: float
    prefill_spread: float
    chunk: int = 2048
    reserve: tuple[float, float] = (0.0, 0.0)
    usable: tuple[float, float] = (1.0, 1.0)
    count: int = 1
    pair_latency: float = 15e-6
    link: float = 25e9
    grouped_rates: Mapping[str, float] | None = None
    decode_attention: float | None = None
    n_threads: int = 0
    basis: str = ""
    remarks: tuple[str, ...] = ()

    def read_seconds(self, weights: Amounts) -> float:
        """To read the weights once, each device its share."""
        return sum(part.n_bytes / self._rate(self.read_rates, name) for name, part in weights.items()) / self.count

    def product_seconds(self, model: ModelShape, *, prompt: bool = False) -> float:
        """To multiply one token with the weights it needs, one of a prompt's without the head."""
        grouped, share = self.grouped_rates or self.product_rates, model.share(1)
        total = sum(2 * part.n_parameters / self._rate(self.product_rates, name) for name, part in model.always.items())
        total += sum(2 * share * part.n_parameters / self._rate(grouped, name) for name, part in model.experts.items())
        if prompt and model.head[1]:
            total -= 2 * model.head[1] / self._rate(self.product_rates, model.head[0])
        return total / self.count

    def exchange_seconds(self, model: ModelShape, n_tokens: float) -> float:
        """Two sums over all devices per layer, of n_tokens in 16 bits."""
        if self.count == 1:
            return 0.0
        moved = 2 * (self.count - 1) / self.count * n_tokens * model.hidden * 2 / self.link
        return 2 * model.n_layers * (moved + self.pair_latency)

    @staticmethod
    def _rate(rates: Mapping[str, float], name: str) -> float:
        return rates.get(name) or rates[ANY]


@dataclass(frozen=True)
class Interval:
    """What is expected, and the bounds it should lie within."""

    low: float
    mid: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Speed:
    """A rate in tokens/s, and the seconds of one step (decode) or of the whole prompt (prefill) by their cause.

    limit: the cause with the most seconds: "weights" and "KV cache" mean reading them, "compute" multiplying with
    weights, "attention" its arithmetic, "overhead" launching, "link" the exchange between devices.
    """

    rate: Interval
    seconds: Mapping[str, float]

    @property
    def limit(self) -> str:
        return max(self.seconds, key=lambda cause: self.seconds[cause])


@dataclass(frozen=True)
class Fit:
    """The memory of one device: what it must hold, what it has, and whether that is enough.

    peak: on this machine, the most that will be resident, once packed weights are kept and at the first start.
    """

    verdict: Verdict
    weight_bytes: float
    kv_bytes: float
    reserve: tuple[float, float]
    usable: tuple[float, float] | None
    peak: tuple[float, float] | None = None

    @property
    def need(self) -> tuple[float, float]:
        """Bytes in all, from the least to the most."""
        low, high = self.reserve
        return self.weight_bytes + self.kv_bytes + low, self.weight_bytes + self.kv_bytes + high


@dataclass(frozen=True)
class Estimate:
    """What is to be expected of a model on a device. context: tokens per sequence, all of them in the KV cache."""

    model: ModelShape
    device: Device
    context: int
    batch: int
    fit: Fit
    decode: Speed
    prefill: Speed


def estimate(model: ModelShape, device: Device, *, context: int, batch: int = 1) -> Estimate:
    """Memory for `batch` sequences of `context` tokens, decode at the end of them, and prefill of one such prompt."""
    fit = check_fit(model, device, context, batch)
    return Estimate(
        model, device, context, batch, fit, decode(model, device, context, batch), prefill(model, device, context)
    )


def check_fit(model: ModelShape, device: Device, context: int, batch: int = 1) -> Fit:
    """Weights and KV cache, as one of the devices holds them, and the reserve against what it has.

    PASS: the most that is needed is within what is surely usable. FAIL: the least is beyond all that might be.
    """
    weight_bytes = model.weight_bytes / device.count
    kv_bytes = batch * context * model.kv_token_bytes / _kv_shares(model, device.count)
    reserves, peak = device.reserve, None
    if device.n_threads:
        reserves = (_reserve_here(model, device, context),) * 2
        peak = model.footprint.peak_bytes(weight_bytes, kv_bytes, context, batch, device.n_threads)
    low, high = (weight_bytes + kv_bytes + reserve for reserve in reserves)
    if device.memory is None:
        return Fit("UNKNOWN", weight_bytes, kv_bytes, reserves, None, peak)
    doubtful, safe = (share * device.memory for share in device.usable)
    verdict: Verdict = "PASS" if high <= safe else "FAIL" if low > doubtful else "UNKNOWN"
    return Fit(verdict, weight_bytes, kv_bytes, reserves, (doubtful, safe), peak)


def _reserve_here(model: ModelShape, device: Device, context: int) -> float:
    return model.footprint.reserve_bytes(model.weight_bytes, context, device.n_threads)


def decode(model: ModelShape, device: Device, context: float, batch: int = 1) -> Speed:
    """A step that makes one token for each of `batch` sequences with `context` tokens behind them."""
    slow = _decode_seconds(model, device, context, batch, model.read(batch))
    fast = _decode_seconds(model, device, context, batch, model.read(1 + (batch - 1) * CORRELATED))
    mid, best, spread = sum(slow.values()), sum(fast.values()), device.decode_spread
    return Speed(Interval(batch / mid / spread, batch / mid, batch / best * spread), slow)


def _decode_seconds(
    model: ModelShape, device: Device, context: float, batch: int, weights: Amounts
) -> dict[str, float]:
    # Weights and attention are phases that follow each other, and each waits for the slower of memory and arithmetic.
    read, product = device.read_seconds(weights), batch * device.product_seconds(model)
    shares = _kv_shares(model, device.count)
    kv = batch * model.kv_read(context) / device.kv_rate / shares
    rate = device.decode_attention or device.attention_rate
    attention = batch * model.attention_flops(context) / rate / device.count
    return {
        "weights" if read >= product else "compute": max(read, product),
        "KV cache" if kv >= attention else "attention": max(kv, attention),
        "overhead": model.n_layers * device.overhead,
        "link": device.exchange_seconds(model, batch),
    }


def prefill(model: ModelShape, device: Device, n_tokens: int, start: int = 0) -> Speed:
    """Reading a prompt of n_tokens after `start` others, in chunks."""
    seconds = dict.fromkeys(("weights", "compute", "attention", "overhead", "link"), 0.0)
    compute_per_token = device.product_seconds(model, prompt=True)
    for first in range(0, n_tokens, device.chunk):
        size = min(device.chunk, n_tokens - first)
        read, product = device.read_seconds(model.read(size)), size * compute_per_token
        seconds["weights" if read > product else "compute"] += max(read, product)
        middle = start + first + size / 2
        pairs = size * model.attention_flops(middle, prompt=True)
        seconds["attention"] += pairs / device.attention_rate / device.count
        seconds["overhead"] += model.n_layers * device.overhead
        seconds["link"] += device.exchange_seconds(model, size)
    rate = n_tokens / sum(seconds.values())
    return Speed(Interval(rate / device.prefill_spread, rate, rate * device.prefill_spread), seconds)


def devices_needed(model: ModelShape, device: Device, context: int, batch: int = 1, most: int = 1024) -> int | None:
    """The least power of two of such devices that surely hold the model together; None if `most` do not."""
    count = 1
    while count <= most:
        if check_fit(model, replace(device, count=count), context, batch).verdict == "PASS":
            return count
        count *= 2
    return None


def longest_context(model: ModelShape, device: Device, batch: int = 1) -> int:
    """Tokens per sequence that surely fit, at most the model's own; 0 if not even the weights do."""
    if device.memory is None:
        return model.max_context
    reserve = _reserve_here(model, device, model.max_context) if device.n_threads else device.reserve[1]
    spare = device.usable[1] * device.memory - model.weight_bytes / device.count - reserve
    per_token = batch * model.kv_token_bytes / _kv_shares(model, device.count)
    return max(0, min(model.max_context, int(spare / per_token) if per_token else model.max_context))


def ridge(model: ModelShape, device: Device) -> float:
    """Tokens per step from which arithmetic, not reading the weights, bounds a product on this device.

    Of a mixture the step must read every expert, which is so when there are many tokens.
    """
    per_token = device.product_seconds(model)
    return device.read_seconds(model.read(1e9)) / per_token


def _kv_shares(model: ModelShape, count: int) -> float:
    """Into how many parts the KV cache can be divided: by heads, and a latent row not at all."""
    heads = min((1 if part.kind == "latent" else part.n_kv_heads for part in model.attention), default=1)
    return min(count, heads)
