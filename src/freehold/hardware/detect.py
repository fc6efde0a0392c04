"""This machine as this process may use it: processor, cores, memory, and the reasons for every limit.

Owns the Machine record and the rules that turn what the system says into "usable". Linux is read from files below
`root`, so that tests can bring a machine of their own; other systems are asked in foreign.py, as well as they answer.
Never raises for what a system lacks: a fact that cannot be read is None or a stated assumption.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from freehold import settings as environment
from freehold.hardware import foreign
from freehold.hardware.cgroup import Limits, parse_cpu_list, read_limits, read_text
from freehold.settings import Settings

KNOWN_FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_vbmi"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
"""Processor features that matter to the kernels, in Linux's spelling: x86, then ARM."""

MIN_HEADROOM = 256 << 20
MAX_HEADROOM = 2 << 30
ASSUMED_MEMORY = 4 << 30
"""Taken for the memory size where the system does not tell it."""


@dataclass(frozen=True)
class Machine:
    """A snapshot. Memory and disk in bytes, quota in cores; None means not known, or no such limit.

    cpus: the logical CPUs to run on, one per physical core. n_usable: threads that can run at full speed at once, after
    affinity, cpuset and quota, at least 1; limits says what lowered it. n_threads: what Freehold will start.
    memory_budget: what weights, KV cache and scratch may take together; memory_limits says how it came about.
    amx_permitted: whether the kernel hands out AMX tile state; None without AMX.
    """

    system: str
    architecture: str
    cpu: str
    flags: tuple[str, ...] | None
    n_cores_logical: int
    n_cores_physical: int
    n_affinity: int
    cpu_quota: float | None
    cpus: tuple[int, ...]
    n_usable: int
    n_threads: int
    limits: tuple[str, ...]
    memory_total: int
    memory_available: int
    memory_limit: int | None
    memory_budget: int
    memory_limits: tuple[str, ...]
    swap_total: int
    swap_used: int
    huge_pages: str | None
    amx_permitted: bool | None
    virtual_machine: bool
    container: str | None
    store: Path
    disk_free: int | None


@dataclass(frozen=True)
class _Cores:
    n_logical: int
    n_physical: int
    n_affinity: int
    cpus: tuple[int, ...]
    n_usable: int
    limits: tuple[str, ...]


def detect(settings: Settings | None = None, *, root: Path = Path("/")) -> Machine:
    """Look at the machine. `settings` (default: the environment) sets threads, a memory cap and the store's place."""
    settings = environment.load() if settings is None else settings
    info = _cpuinfo(root)
    flags = _flags(info)
    limits = read_limits(root)
    cores = _cores(root, limits)
    memory = _memory(root)
    budget, reasons = _budget(memory, limits, settings.memory)
    return Machine(
        system=sys.platform,
        architecture=platform.machine(),
        cpu=_cpu_name(root, info),
        flags=flags,
        n_cores_logical=cores.n_logical,
        n_cores_physical=cores.n_physical,
        n_affinity=cores.n_affinity,
        cpu_quota=limits.cpu_quota,
        cpus=cores.cpus,
        n_usable=cores.n_usable,
        n_threads=settings.n_threads or cores.n_usable,
        limits=cores.limits,
        memory_total=memory.total or ASSUMED_MEMORY,
        memory_available=_available(memory),
        memory_limit=limits.memory_limit,
        memory_budget=budget,
        memory_limits=reasons,
        swap_total=memory.swap_total,
        swap_used=memory.swap_used,
        huge_pages=_huge_pages(root),
        amx_permitted=foreign.amx_supported() if flags and "amx_tile" in flags else None,
        virtual_machine="hypervisor" in info.get("flags", "").split(),
        container=_container(root),
        store=settings.home,
        disk_free=_disk_free(settings.home),
    )


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo."""
    info: dict[str, str] = {}
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    return info


def _flags(info: dict[str, str]) -> tuple[str, ...] | None:
    present = set(info.get("flags", info.get("Features", "")).split()) or foreign.flags()
    return None if present is None else tuple(flag for flag in KNOWN_FLAGS if flag in present)


def _cpu_name(root: Path, info: dict[str, str]) -> str:
    if "model name" in info:
        return info["model name"]
    board = (read_text(root / "proc/device-tree/model") or "").strip("\0 ")
    if board:
        return board
    if "CPU part" in info:  # ARM servers give numbers only
        return f"{platform.machine()} (implementer {info.get('CPU implementer', '?')}, part {info['CPU part']})"
    return foreign.cpu_name()


def _cores(root: Path, limits: Limits) -> _Cores:
    online = _cpu_list(root / "sys/devices/system/cpu/online") or frozenset(range(os.cpu_count() or 1))
    affinity = _affinity(root) or online
    allowed = (affinity & limits.cpus if limits.cpus else affinity) or affinity
    cpus = _one_per_core(root, allowed)
    n_physical = foreign.physical_cores() or len(_one_per_core(root, online))
    n_usable = min(len(cpus), n_physical)
    reasons = []
    if len(affinity) < len(online):
        reasons.append(f"CPU affinity allows {len(affinity)} of {len(online)} CPUs")
    if len(allowed) < len(affinity):
        reasons.append(f"the cgroup's cpuset allows {len(allowed)} of them")
    if n_usable < len(allowed):
        reasons.append(f"{len(allowed)} hardware threads share {n_usable} cores; one thread per core is fastest")
    if limits.cpu_quota is not None and limits.cpu_quota < n_usable:
        n_usable = max(1, math.floor(limits.cpu_quota + 1e-6))
        reasons.append(f"the cgroup's CPU quota is {limits.cpu_quota:g} cores; more threads would only be throttled")
    return _Cores(len(online), n_physical, len(affinity), cpus, n_usable, tuple(reasons))


def _affinity(root: Path) -> frozenset[int] | None:
    for line in (read_text(root / "proc/self/status") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "Cpus_allowed_list":
            return _parse_cpus(value)
    return None


def _one_per_core(root: Path, cpus: frozenset[int]) -> tuple[int, ...]:
    """The lowest of `cpus` on each physical core. CPUs whose siblings are not known count as cores of their own."""
    cores: dict[frozenset[int], int] = {}
    for cpu in sorted(cpus):
        siblings = _cpu_list(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(siblings or frozenset({cpu}), cpu)
    return tuple(sorted(cores.values()))


def _cpu_list(path: Path) -> frozenset[int] | None:
    return _parse_cpus(read_text(path) or "")


def _parse_cpus(text: str) -> frozenset[int] | None:
    try:
        return parse_cpu_list(text) or None
    except ValueError:
        return None


def _memory(root: Path) -> foreign.Memory:
    values: dict[str, int] = {}
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        fields = line.replace(":", " ").split()
        if len(fields) >= 2 and fields[1].isdecimal():
            values[fields[0]] = int(fields[1]) * 1024
    if "MemTotal" not in values:
        return foreign.memory()
    swap_total = values.get("SwapTotal", 0)
    available = values.get("MemAvailable", values.get("MemFree"))
    return foreign.Memory(values["MemTotal"], available, swap_total, swap_total - values.get("SwapFree", swap_total))


def _available(memory: foreign.Memory) -> int:
    """Bytes that can be taken without swapping; half of all where the system does not say."""
    return memory.available if memory.available is not None else (memory.total or ASSUMED_MEMORY) // 2


def _budget(memory: foreign.Memory, limits: Limits, cap: int | None) -> tuple[int, tuple[str, ...]]:
    """Bytes this process may plan with: the tightest bound minus headroom for everybody else, then the user's cap."""
    reasons = []
    if memory.total is None:
        reasons.append(f"this system does not tell its memory size; {_gb(ASSUMED_MEMORY)} are assumed")
    room = _available(memory)
    if limits.memory_room is not None and limits.memory_limit is not None and limits.memory_room < room:
        room = limits.memory_room
        reasons.append(f"the cgroup's memory limit of {_gb(limits.memory_limit)} leaves {_gb(room)}")
    else:
        reasons.append(f"{_gb(room)} of memory are available")
    headroom = min(room // 2, max(MIN_HEADROOM, min(MAX_HEADROOM, room // 20)))
    reasons.append(f"{_gb(headroom)} are kept free for other programs")
    budget = room - headroom
    if cap is not None and cap < budget:
        budget = cap
        reasons.append(f"FREEHOLD_MEMORY allows {_gb(cap)}")
    return budget, tuple(reasons)


def _huge_pages(root: Path) -> str | None:
    """The mode of transparent huge pages: always, madvise or never."""
    modes = (read_text(root / "sys/kernel/mm/transparent_hugepage/enabled") or "").split()
    return next((mode[1:-1] for mode in modes if mode.startswith("[") and mode.endswith("]")), None)


def _container(root: Path) -> str | None:
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    if "microsoft" in (read_text(root / "proc/version") or "").lower():
        return "wsl"
    return read_text(root / "run/systemd/container") or None


def _disk_free(path: Path) -> int | None:
    """Free bytes where `path` is, or will be once it is created."""
    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"
