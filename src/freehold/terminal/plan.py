"""`freehold plan` as plain data for --json and as text of 80 columns. Owns what is said and how; estimates nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from freehold.hardware.estimate import Estimate, Fit, Interval, Speed
from freehold.planner import COMFORTABLE, Change, Plan
from freehold.terminal.console import human_bytes, human_count, printable, table

Facts = dict[str, Any]

WIDTH = 80
_NAME = 24  # columns for a part's name in a table

BASIS = {
    "measured": "rates measured on this machine with Freehold's kernels",
    "card": "what runtimes reach on such cards, from published measurements",
    "datacentre": "decode as on consumer cards, prefill from published measurements of data-centre parts",
    "accelerator": "as on GPUs with tuned software; two published points of 2025 decode far slower (docs/planner.md)",
    "apple": "what runtimes reach on Apple's chips, from published measurements",
    "unified": "what runtimes reach on such chips, from published measurements",
    "apu": "what runtimes reach on such chips, from published measurements",
    "cpu": "decode from few measurements, prefill assumed",
}


def describe_plan(plan: Plan) -> Facts:
    """A plan for --json: bytes, tokens per second, seconds; docs/planner.md explains the keys."""
    now, chip, fit = plan.estimate, plan.target.chip, plan.alone.fit
    return {
        "model": now.model.name,
        "format": now.model.format,
        "parameters": now.model.n_parameters,
        "active_parameters": now.model.n_active,
        "device": now.device.name,
        "this_machine": chip is None,
        "count": now.device.count,
        "count_needed": plan.needed,
        "context": now.context,
        "batch": now.batch,
        "fits": {
            "verdict": fit.verdict,
            "weight_bytes": round(fit.weight_bytes),
            "kv_bytes": round(fit.kv_bytes),
            "runtime_bytes": [round(part) for part in fit.reserve],
            "need_bytes": [round(part) for part in fit.need],
            "usable_bytes": [round(part) for part in sorted(fit.usable)] if fit.usable else None,
            "peak_bytes": [round(part) for part in fit.peak] if fit.peak else None,
        },
        "decode": _speed_facts(now.decode),
        "prefill": _speed_facts(now.prefill),
        "basis": BASIS[now.device.basis],
        "remarks": list(now.device.remarks),
    }


def describe_change(change: Change) -> Facts:
    """The same of a change, and what it is."""
    return {"what": change.what, **describe_plan(change.plan)}


def _speed_facts(speed: Speed) -> Facts:
    rate = speed.rate
    return {
        "tokens_per_second": {"low": _round(rate.low), "expected": _round(rate.mid), "high": _round(rate.high)},
        "limit": speed.limit,
        "seconds": {cause: float(f"{seconds:.4g}") for cause, seconds in speed.seconds.items()},
    }


def render_one(plan: Plan, found: Sequence[Change]) -> str:
    """One model in one place, in full."""
    now, model = plan.estimate, plan.estimate.model
    active = f", {human_count(model.n_active)} of them active" if model.n_experts else ""
    rows = [
        ("model", f"{model.name}, {human_count(model.n_parameters)} parameters{active}"),
        ("on", _place(plan)),
        ("format", f"{model.format}, {human_bytes(model.weight_bytes)} of weights"),
        ("fits", _fit(plan)),
        *([("peak", _peak(plan.alone.fit.peak))] if plan.alone.fit.peak else []),
        *([] if _is_out(plan) else [("decode", _decode(now)), ("prefill", _prefill(now))]),
        ("basis", "; ".join([BASIS[now.device.basis], *now.device.remarks])),
    ]
    lines = [_page(rows)]
    if found:
        lines += ["", "what would change that", table([("", "fits", "decode", "prefill"), *map(_change_row, found)])]
    return "\n".join(lines)


def render_many(plans: Sequence[Plan]) -> str:
    """Several plans side by side, then what limits each, and how far each is behind the fastest."""
    head = ("on", "fits", "decode", "prefill")
    blocks, names = [], list(dict.fromkeys(plan.estimate.model.name for plan in plans))
    for name in names:
        chosen = [plan for plan in plans if plan.estimate.model.name == name]
        now = chosen[0].estimate
        formats = ", ".join(dict.fromkeys(plan.estimate.model.format for plan in chosen))
        blocks.append(f"{name} in {formats}, {_workload(now)}, tokens/s")
        blocks += [table([head, *map(_side, chosen)]), ""]
        blocks += ["limited by", *(_drivers(plan) for plan in chosen)]
        if len(chosen) > 1:
            blocks += ["", "beside the fastest of these", *_behind(chosen)]
        blocks += [""] if name != names[-1] else []
    return "\n".join([*blocks, "", *_grounds(plans)])


def render_ranking(plans: Sequence[Plan], n_left_out: int) -> str:
    """Models that fit one machine, the best first."""
    if not plans:
        return "no model of the catalogue surely fits here; a shorter --context may help"
    now = plans[0].estimate
    context = max(plan.estimate.context for plan in plans)
    rows = [("model", "format", "memory", "decode", "prefill")]
    rows += [
        (
            plan.estimate.model.name,
            plan.estimate.model.format,
            human_bytes(plan.estimate.fit.need[1]),
            _range(plan.estimate.decode.rate),
            _range(plan.estimate.prefill.rate),
        )
        for plan in plans
    ]
    each = f"{now.batch} sequences of" if now.batch > 1 else "one sequence of"
    head = f"what runs on {now.device.name}: {each} up to {context:,} tokens, tokens/s"
    legend = (
        f"Largest first among those of {COMFORTABLE:g} tokens/s and more, then the others, the quickest first; each in "
        f"the most precise format with that speed. {n_left_out} more of the catalogue do not fit."
    )
    return "\n".join([head, "", table(rows), "", textwrap.fill(legend, WIDTH)])


def _grounds(plans: Sequence[Plan]) -> list[str]:
    """What the figures rest on, with the parts that it is said of."""
    said: dict[str, dict[str, None]] = {}
    for plan in plans:
        device = plan.estimate.device
        for text in (BASIS[device.basis], *device.remarks):
            said.setdefault(text, {})[device.name] = None
    texts = [f"{', '.join(names)}: {text}" for text, names in said.items()]
    return [textwrap.fill(printable(text), WIDTH, subsequent_indent="  ") for text in texts]


def _place(plan: Plan) -> str:
    device, chip = plan.estimate.device, plan.target.chip
    if chip is None:
        return f"this machine, {human_bytes(device.memory or 0)} of memory may be used"
    rate = chip.flops.get("bf16")
    parts = [f"{human_bytes(chip.memory_bytes)}" if chip.memory_bytes else "memory not public"]
    parts.append(f"{(chip.bandwidth or 0) / 1e9:,.0f} GB/s")
    if rate:
        parts.append(f"{rate / 1e12:,.0f} TFLOP/s in bf16")
    return f"{f'{device.count} x ' if device.count > 1 else ''}{chip.name}: {', '.join(parts)}"


def _fit(plan: Plan) -> str:
    now, fit = plan.alone, plan.alone.fit
    text = f"{fit.verdict}{' on one' if plan.estimate.device.count > 1 else ''}: {_sum(now, fit)}"
    if fit.usable is None:
        return f"{text}; how much memory it has is not public"
    doubtful, safe = fit.usable
    if safe <= 0:
        return f"{text}; the processor takes up to {human_bytes(doubtful)}, your machine has what was built in"
    text += f" of {human_bytes(safe)}"
    if fit.verdict == "UNKNOWN":
        text += f" by default, {human_bytes(doubtful)} at most: it depends on settings and on what else runs there"
    if fit.verdict == "FAIL":
        more = "" if plan.target.chip is None else "; not even a thousand hold it"
        text += f"; {plan.needed} of them hold it" if plan.needed and plan.needed > 1 else more
    return text


def _sum(now: Estimate, fit: Fit) -> str:
    low, high = fit.reserve
    runtime = human_bytes(high) if low == high else f"{low / 1e9:.1f} to {human_bytes(high)}"
    need = human_bytes(fit.need[1]) if low == high else f"{fit.need[0] / 1e9:.1f} to {human_bytes(fit.need[1])}"
    many = f"{now.batch} x " if now.batch > 1 else ""
    return (
        f"{human_bytes(fit.weight_bytes)} weights + {human_bytes(fit.kv_bytes)} KV cache of {many}{now.context:,} "
        f"tokens + {runtime} runtime = {need}"
    )


def _peak(peak: tuple[float, float]) -> str:
    later, first = peak
    return f"{human_bytes(later)} resident with the context full; {human_bytes(first)} at the first start, which packs"


def _decode(now: Estimate) -> str:
    step = sum(now.decode.seconds.values())
    many = f" for {now.batch} sequences together" if now.batch > 1 else ""
    return (
        f"{_number(now.decode.rate.mid)} tok/s ({_bounds(now.decode.rate)}){many} at {now.context:,} tokens of "
        f"context; of {1000 * step:.3g} ms per step {_causes(now.decode)}"
    )


def _prefill(now: Estimate) -> str:
    total = sum(now.prefill.seconds.values())
    return (
        f"{_number(now.prefill.rate.mid)} tok/s ({_bounds(now.prefill.rate)}): {now.context:,} tokens in "
        f"{_time(total)}; {_causes(now.prefill)}"
    )


def _causes(speed: Speed) -> str:
    """The shares of what takes a tenth and more, the largest first."""
    total = sum(speed.seconds.values())
    parts = sorted(speed.seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{100 * seconds / total:.0f} % {cause}" for cause, seconds in parts if seconds >= 0.1 * total)


def _change_row(change: Change) -> tuple[str, str, str, str]:
    return change.what, *_cells(change.plan)


def _side(plan: Plan) -> tuple[str, str, str, str]:
    return _short(plan.estimate.device.name), *_cells(plan)


def _cells(plan: Plan) -> tuple[str, str, str]:
    """Fits, decode, prefill; no speeds of what does not fit."""
    now = plan.estimate
    if _is_out(plan):
        return _verdict(plan), "-", "-"
    return _verdict(plan), _range(now.decode.rate), _range(now.prefill.rate)


def _is_out(plan: Plan) -> bool:
    return plan.alone.fit.verdict == "FAIL" and not (plan.needed and plan.needed > 1)


def _verdict(plan: Plan) -> str:
    if plan.needed and plan.needed > 1:
        return f"{plan.needed} do"
    return plan.alone.fit.verdict


def _drivers(plan: Plan) -> str:
    now, chip = plan.estimate, plan.target.chip
    text = f"decode {_causes(now.decode)}; prefill {_causes(now.prefill)}"
    if chip is not None and chip.tdp_w:
        joules = chip.tdp_w * now.device.count / now.decode.rate.mid
        text += f"; {joules:.2g} J per token at {chip.tdp_w:,.0f} W{' each' if now.device.count > 1 else ''}"
    name = f"{_short(now.device.name)}: "
    return textwrap.fill(printable(name + text), WIDTH, initial_indent="  ", subsequent_indent="    ")


def _behind(plans: Sequence[Plan]) -> list[str]:
    """Per device, so that one of eight is compared with one."""
    best = {}
    for what in ("decode", "prefill"):
        best[what] = max(plans, key=lambda plan: _per_device(plan, what))
    lines = []
    for plan in plans:
        shares = []
        for what, first in best.items():
            share = _per_device(plan, what) / _per_device(first, what)
            shares.append(f"{what} {100 * share:.0f} %" if plan is not first else f"{what} the fastest")
        loss = _per_device(plan, "prefill") / _per_device(best["prefill"], "prefill")
        kept = _per_device(plan, "decode") / _per_device(best["decode"], "decode")
        verdict = ""
        if kept >= 0.7 and loss < 0.5:
            verdict = ": keeps decode, loses prefill"
        elif loss >= 0.7 and kept < 0.5:
            verdict = ": keeps prefill, loses decode"
        lines.append(f"  {_short(plan.estimate.device.name)}: {', '.join(shares)}{verdict}")
    if any(plan.estimate.device.count > 1 for plan in plans):
        lines.append("  (rates of a group are divided by the number of its parts)")
    return lines


def _per_device(plan: Plan, what: str) -> float:
    speed: Speed = getattr(plan.estimate, what)
    return speed.rate.mid / plan.estimate.device.count


def _workload(now: Estimate) -> str:
    return f"{now.batch} sequence{'s' if now.batch > 1 else ''} of {now.context:,} tokens"


def _short(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 3] + "..."


def _range(rate: Interval) -> str:
    return f"{_number(rate.mid)} ({_bounds(rate)})"


def _bounds(rate: Interval) -> str:
    return f"{_number(rate.low)}-{_number(rate.high)}"


def _number(rate: float) -> str:
    """Two digits that mean something, three where they cost nothing."""
    return f"{_round(rate):,.0f}" if rate >= 9.95 else f"{rate:.1f}" if rate >= 0.1 else f"{rate:.2g}"


def _round(rate: float) -> float:
    return float(f"{rate:.2g}" if rate < 100 else f"{rate:.3g}" if rate < 1000 else f"{rate:.2g}")


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


def _page(rows: Sequence[tuple[str, str]]) -> str:
    """Labelled paragraphs."""
    width = max(len(label) for label, _ in rows) + 2
    return "\n".join(
        textwrap.fill(
            printable(text),
            WIDTH,
            initial_indent=label.ljust(width),
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
        for label, text in rows
    )
