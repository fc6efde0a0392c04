"""What holds this machine back, each with its remedy: the advice of `freehold doctor`.

Owns the thresholds and the wording. Judges a Machine record only; measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from freehold.hardware.detect import Machine
from freehold.settings import Settings

LITTLE_MEMORY = 1 << 30
"""Below this budget even a small model leaves little room for its conversation."""
LITTLE_DISK = 2 << 30
BUSY_SWAP = 64 << 20


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what the user can do about it; one sentence each."""

    what: str
    remedy: str


def problems(machine: Machine, settings: Settings | None = None) -> list[Problem]:
    """Everything worth telling about `machine` (and about `settings`: misspelt variables), the weightiest first."""
    return [*_processor(machine), *_cores(machine), *_memory(machine), *_rest(machine, settings)]


def _processor(machine: Machine) -> Iterator[Problem]:
    is_x86 = machine.architecture.lower() in ("x86_64", "amd64")
    if is_x86 and machine.flags is not None and "avx2" not in machine.flags:
        where = "the virtual machine hides AVX2" if machine.virtual_machine else "this processor has no AVX2"
        remedy = (
            "set the virtual machine's CPU type to `host` (passthrough)"
            if machine.virtual_machine
            else "expect a small fraction of the usual speed on this machine"
        )
        yield Problem(f"{where}, so the slow scalar kernels run", remedy)
    if machine.amx_permitted is False:
        yield Problem(
            "the processor has AMX, but the kernel does not hand out tile state, so prefill runs on AVX-512",
            "use Linux 5.16 or newer, and allow arch_prctl where a sandbox filters system calls",
        )


def _cores(machine: Machine) -> Iterator[Problem]:
    quota = machine.cpu_quota
    if quota is not None and quota < len(machine.cpus):
        yield Problem(
            f"the CPU quota of {quota:g} cores is below the {len(machine.cpus)} cores this process can run on; "
            f"{machine.n_usable} {'is' if machine.n_usable == 1 else 'are'} used",
            "raise the container's CPU limit (docker --cpus, Kubernetes resources.limits.cpu), best to a whole number",
        )
    if len(machine.cpus) < machine.n_cores_physical:
        yield Problem(
            f"affinity or cpuset gives this process {len(machine.cpus)} of {machine.n_cores_physical} cores",
            "widen it (taskset, docker --cpuset-cpus, the batch system's request) if the machine is yours alone",
        )
    if machine.n_threads > machine.n_usable:
        yield Problem(
            f"FREEHOLD_THREADS asks for {machine.n_threads} threads, but {machine.n_usable} can run at full speed",
            "unset FREEHOLD_THREADS, or measure with `freehold bench` that more is faster",
        )


def _memory(machine: Machine) -> Iterator[Problem]:
    if machine.memory_budget < LITTLE_MEMORY:
        yield Problem(
            f"only {_gb(machine.memory_budget)} of memory may be used ({'; '.join(machine.memory_limits)})",
            "close other programs, raise the container's memory limit or FREEHOLD_MEMORY, or use a small model",
        )
    if machine.swap_used > BUSY_SWAP:
        yield Problem(
            f"{_gb(machine.swap_used)} of swap are in use: weights that were swapped out make every token slow",
            "close other programs; once memory is free, `sudo swapoff -a && sudo swapon -a` empties the swap",
        )
    if machine.huge_pages == "never":
        yield Problem(
            "transparent huge pages are off, which costs up to a third of the memory bandwidth",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )


def _rest(machine: Machine, settings: Settings | None) -> Iterator[Problem]:
    if machine.disk_free is not None and machine.disk_free < LITTLE_DISK:
        yield Problem(
            f"only {_gb(machine.disk_free)} are free where models are stored ({machine.store})",
            "remove models (`freehold ls`, `freehold rm`) or set FREEHOLD_HOME to a larger disk",
        )
    for name in settings.unknown if settings is not None else ():
        yield Problem(f"the environment variable {name} means nothing to Freehold", "correct its name or unset it")


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"
