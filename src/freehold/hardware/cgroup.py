"""What control groups grant this process: CPU time, CPUs and memory, under version 1, version 2 or both at once.

Owns finding this process's groups and reading limits upwards to the root: the tightest one counts. Linux only;
elsewhere, and where files are missing, there are simply no limits. `root` stands for "/", so that tests can bring a
tree of their own. Source: the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_V1_UNLIMITED = 1 << 60
"""Version 1 writes "no limit" as the largest page-aligned 63-bit number."""


@dataclass(frozen=True)
class Limits:
    """cpu_quota in cores, cpus allowed, memory in bytes; None is no limit.

    memory_room is what may still be taken before the tightest group is full. Page cache counts as room: the kernel
    gives it up before it kills anything. memory_limit is that group's limit.
    """

    cpu_quota: float | None = None
    cpus: frozenset[int] | None = None
    memory_limit: int | None = None
    memory_room: int | None = None


def read_limits(root: Path = Path("/")) -> Limits:
    """The limits of this process, from ROOT/proc/self/cgroup, ROOT/proc/self/mountinfo and the mounted hierarchies."""
    groups = _groups(root)
    quotas = [quota for directory in _upwards(groups, "cpu") if (quota := _cpu_quota(directory)) is not None]
    cpusets = [cpus for directory in _upwards(groups, "cpuset") if (cpus := _cpuset(directory)) is not None]
    memory = [found for directory in _upwards(groups, "memory") if (found := _memory(directory)) is not None]
    room, limit = min(memory, default=(None, None))
    return Limits(
        cpu_quota=min(quotas, default=None),
        cpus=frozenset.intersection(*cpusets) if cpusets else None,
        memory_limit=limit,
        memory_room=room,
    )


def parse_cpu_list(text: str) -> frozenset[int]:
    """CPU numbers of the kernel's list format, "0-3,8". ValueError when it is malformed or absurdly long."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, dash, last = part.partition("-")
            low, high = int(first), int(last if dash else first)
            if not 0 <= low <= high < 1 << 16:
                raise ValueError(f"bad CPU range {part!r}")
            cpus.update(range(low, high + 1))
    return frozenset(cpus)


def read_text(path: Path) -> str | None:
    """The stripped text of a small system file, or None when it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except (OSError, ValueError):
        return None


def read_int(path: Path) -> int | None:
    """The whole number in a system file, or None."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def read_table(path: Path) -> dict[str, int]:
    """Lines "name number" of a system file, such as memory.stat; empty when it cannot be read."""
    rows = (line.split() for line in (read_text(path) or "").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}


@dataclass(frozen=True)
class _Group:
    """One hierarchy: where it is mounted, this process's directory in it, and the controllers it has ("" for v2)."""

    mount: Path
    directory: Path
    controllers: frozenset[str]


def _groups(root: Path) -> list[_Group]:
    paths: dict[frozenset[str], str] = {}
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            paths[frozenset(fields[1].split(","))] = fields[2]
    groups = []
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if len(left) < 5 or len(right) < 3 or right[0] not in ("cgroup", "cgroup2"):
            continue
        options = {""} if right[0] == "cgroup2" else set(right[2].split(","))
        for controllers, path in paths.items():
            if controllers <= options:
                mount = root / left[4].lstrip("/")
                groups.append(_Group(mount, _directory(mount, left[3], path), controllers))
    return groups


def _directory(mount: Path, mount_root: str, path: str) -> Path:
    """This process's directory. In a container the mount shows only the part of the hierarchy below mount_root."""
    below = mount_root.rstrip("/")
    if path != below and not path.startswith(below + "/"):
        return mount  # our group lies outside of what is mounted; the mount's top is the nearest group to be seen
    parts = [part for part in path[len(below) :].split("/") if part]
    return mount if ".." in parts else mount.joinpath(*parts)


def _upwards(groups: list[_Group], controller: str) -> Iterator[Path]:
    """The directories that bind `controller`, from this process's group up to the mount."""
    for group in groups:
        if controller in group.controllers or "" in group.controllers:
            directory = group.directory
            yield directory
            while directory != group.mount:
                directory = directory.parent
                yield directory


def _cpu_quota(directory: Path) -> float | None:
    fields = (read_text(directory / "cpu.max") or "").split()
    if len(fields) == 2 and fields[0].isdecimal() and fields[1].isdecimal():  # version 2: "max 100000" is no limit
        quota, period = int(fields[0]), int(fields[1])
    else:
        quota = read_int(directory / "cpu.cfs_quota_us") or -1
        period = read_int(directory / "cpu.cfs_period_us") or -1
    return quota / period if quota > 0 and period > 0 else None


def _cpuset(directory: Path) -> frozenset[int] | None:
    for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
        try:
            cpus = parse_cpu_list(read_text(directory / name) or "")
        except ValueError:
            continue
        if cpus:
            return cpus
    return None


def _memory(directory: Path) -> tuple[int, int] | None:
    """(room, limit) of one group in bytes, or None when it has no limit."""
    stat = read_table(directory / "memory.stat")
    limit = read_int(directory / "memory.max")  # version 2; "max" reads as None
    if limit is not None:
        used = read_int(directory / "memory.current") or 0
        cache = stat.get("inactive_file", 0) + stat.get("active_file", 0)
        return max(0, limit - max(0, used - cache)), limit
    limit = read_int(directory / "memory.limit_in_bytes")
    # A container may not see its parents' files, but version 1 repeats the tightest of their limits here.
    limit = min(_V1_UNLIMITED if limit is None else limit, stat.get("hierarchical_memory_limit", _V1_UNLIMITED))
    if limit >= _V1_UNLIMITED:
        return None
    used = read_int(directory / "memory.usage_in_bytes") or 0
    cache = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
    return max(0, limit - max(0, used - cache)), limit
