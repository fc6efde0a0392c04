"""The plans of `freehold plan`: which shapes and devices meet, in which format, on how many, what would change that.

Owns the choices; the arithmetic is hardware/estimate.py's, what a model and this machine are is shapes.py's and
calibration.py's. Knows no terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from freehold import settings
from freehold.calibration import calibrated, device_here
from freehold.errors import RequestError, UnsupportedError
from freehold.hardware import detect
from freehold.hardware.chips import Chip, find_chip, load_chips
from freehold.hardware.devices import class_of, device_of
from freehold.hardware.estimate import Device, Estimate, ModelShape, devices_needed, estimate, longest_context
from freehold.hub import Store, resolve
from freehold.models.rounding import EXPLICIT
from freehold.shapes import PlanFormat, formats_of, shape_of_checkpoint, shape_of_published
from freehold.weights import Checkpoint, open_checkpoint
from freehold.weights.synth import SHAPES

OFFERED: tuple[PlanFormat, ...] = ("published", "q8_0", "q4_k_m")
"""Tried, in this order, where the user names no format; the first that fits is taken."""

DEFAULT_CONTEXT = 8192
COMFORTABLE = 8.0
"""Tokens per second from which an answer comes faster than one reads."""

SERVER = 8
"""Parts in one server."""

_BATCHES = (8, 32)


@dataclass(frozen=True)
class Target:
    """Where models are to run. chip is None for this machine."""

    device: Device
    chip: Chip | None = None


@dataclass(frozen=True)
class Plan:
    """A model in one format on a target. estimate.device.count says on how many; `alone` is the fit of a single one.

    needed: how many surely hold it; None if a thousand do not, or nobody knows what memory one has.
    """

    estimate: Estimate
    target: Target
    alone: Estimate
    needed: int | None


@dataclass(frozen=True)
class Change:
    """What another choice would give."""

    what: str
    plan: Plan


def targets(
    chip_names: Sequence[str],
    here: bool,
    release: str,
    *,
    user_file: Path | None = None,
    recalibrate: bool = False,
    note: Callable[[str], None] | None = None,
) -> list[Target]:
    """The chips named, and this machine if asked for or if nothing else is. release: Freehold's version.

    Raises NotFoundError for an unknown chip, UnsupportedError for one whose figures are not public.
    """
    chips = load_chips(user_file)
    found = [Target(device_of(chip), chip) for chip in dict.fromkeys(find_chip(name, chips) for name in chip_names)]
    if here or not found:
        machine = detect(settings.load())
        found.insert(0, Target(device_here(machine, calibrated(machine, release, again=recalibrate, note=note))))
    return found


class Subject:
    """A model to plan for: opened, or known by its shapes only."""

    def __init__(self, model: str) -> None:
        resolved = resolve(model, Store())
        self.name = resolved.name
        self._published = SHAPES.get(resolved.name)
        self._as_stored: ModelShape | None = None
        self._resident: list[ModelShape] = []
        if resolved.path is not None:
            with open_checkpoint(resolved.path) as checkpoint:
                self._as_stored = shape_of_checkpoint(resolved.name, checkpoint, resident=False)
                self._resident = list(_resident(resolved.name, checkpoint))
        elif self._published is None:
            raise UnsupportedError(
                f"the planner does not know the shapes of {resolved.name}; fetch it with `freehold pull "
                f"{resolved.name}`, or name one of {', '.join(SHAPES)}"
            )

    def shapes(self, target: Target, to: PlanFormat | None) -> list[ModelShape]:
        """What to try there, in order: what is at hand before what could be had. `to` leaves one.

        Raises RequestError for a format that the model is not to be had in.
        """
        here, found = target.chip is None, []
        if self._as_stored is not None and to is None:
            found += self._resident if here else [self._as_stored]
        if self._published is not None:
            allowed = formats_of(self._published)
            words = [word for word in OFFERED if word in allowed] if to is None else [to]
            had = {shape.format for shape in found}
            could = [shape_of_published(self.name, self._published, word, resident=here) for word in words]
            found += [shape for shape in could if shape.format not in had]
        elif to is not None:
            raise RequestError(f"{self.name} can only be planned for as it is: --format needs a name of the catalogue")
        return found


def _resident(name: str, checkpoint: Checkpoint) -> Iterator[ModelShape]:
    """As loading makes it by default, then with what `--weights` could round further."""
    first = shape_of_checkpoint(name, checkpoint)
    yield first
    least = first.weight_bytes
    for rounding in EXPLICIT:
        shape = shape_of_checkpoint(name, checkpoint, rounding=rounding)
        if shape.weight_bytes < 0.95 * least:
            least = shape.weight_bytes
            yield replace(shape, format=f"{first.format}, --weights {rounding}")


def make_plan(shape: ModelShape, target: Target, context: int | None, batch: int) -> Plan:
    """The estimate on one, or on as many as it takes. `context` None is DEFAULT_CONTEXT, or the model's own if less."""
    if context is not None and context > shape.max_context:
        raise RequestError(
            f"context is {context}; expected 1 to {shape.max_context}, the most {shape.name} was trained for"
        )
    context = context or min(DEFAULT_CONTEXT, shape.max_context)
    alone = estimate(shape, target.device, context=context, batch=batch)
    if alone.fit.verdict != "FAIL" or target.chip is None:
        return Plan(alone, target, alone, 1 if alone.fit.verdict == "PASS" else None)
    needed = devices_needed(shape, target.device, context, batch)
    chosen = (
        alone if needed is None else estimate(shape, replace(target.device, count=needed), context=context, batch=batch)
    )
    return Plan(chosen, target, alone, needed)


def choose(
    subject: Subject, all_targets: Sequence[Target], to: PlanFormat | None, context: int | None, batch: int
) -> list[Plan]:
    """One plan per target, all in one format if there are several: the first that one of them alone surely holds."""
    tried: list[list[Plan]] = []
    if len(all_targets) > 1 and any(target.chip is None for target in all_targets):
        return [choose(subject, [target], to, context, batch)[0] for target in all_targets]
    for index in range(len(subject.shapes(all_targets[0], to))):
        plans = [make_plan(subject.shapes(target, to)[index], target, context, batch) for target in all_targets]
        tried.append(plans)
        if any(plan.alone.fit.verdict == "PASS" for plan in plans):
            return plans
    # None surely fits one: what might; what a server of eight holds, of parts that come in such; else the smallest.
    for plans in tried:
        if any(plan.alone.fit.verdict == "UNKNOWN" for plan in plans):
            return plans
    for plans in tried:
        if any(_in_servers(plan) and plan.needed and plan.needed <= SERVER for plan in plans):
            return plans
    return tried[-1]


def _in_servers(plan: Plan) -> bool:
    return plan.target.chip is not None and class_of(plan.target.chip) in ("datacentre", "accelerator")


def changes(subject: Subject, plan: Plan) -> list[Change]:
    """What would change a plan: other formats, a longer or shorter context, more sequences."""
    here, now = plan.target, plan.estimate
    found = []
    for shape in subject.shapes(here, None):
        if shape.format != now.model.format:
            found.append(
                Change(f"in {shape.format}", make_plan(shape, here, min(now.context, shape.max_context), now.batch))
            )
    fits = plan.alone.fit.verdict == "PASS"
    longest = longest_context(now.model, here.device, now.batch)
    contexts = {now.model.max_context, longest if fits else min(now.context // 4, longest)}
    for context in sorted(contexts - {now.context, 0}):
        if context >= 256:
            found.append(Change(f"with a context of {context:,}", make_plan(now.model, here, context, now.batch)))
    for batch in _BATCHES:
        if batch > now.batch and fits:
            found.append(Change(f"with {batch} sequences at once", make_plan(now.model, here, now.context, batch)))
    return found


def rank(target: Target, context: int | None, batch: int) -> tuple[list[Plan], int]:
    """Models of the catalogue that surely fit one of `target`, the best first, and how many do not.

    Of each the most precise format that is comfortable to read along with, or the quickest. Comfortable ones come
    first, of these the largest; then the others, the quickest first.
    """
    found, n_left_out = [], 0
    for name in SHAPES:
        subject = Subject(name)
        plans = []
        for shape in subject.shapes(target, None):
            wanted = min(context or DEFAULT_CONTEXT, shape.max_context)
            plan = make_plan(shape, target, wanted, batch)
            if plan.alone.fit.verdict == "PASS":
                plans.append(plan)
        if plans:
            quick = [plan for plan in plans if _rate(plan) >= COMFORTABLE]
            found.append(quick[0] if quick else max(plans, key=_rate))
        else:
            n_left_out += 1
    return sorted(found, key=_merit), n_left_out


def _rate(plan: Plan) -> float:
    """Of one sequence."""
    return plan.estimate.decode.rate.mid / plan.estimate.batch


def _merit(plan: Plan) -> tuple[bool, float]:
    comfortable = _rate(plan) >= COMFORTABLE
    return not comfortable, -plan.estimate.model.n_parameters if comfortable else -_rate(plan)
