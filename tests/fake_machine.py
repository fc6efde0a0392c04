"""Builds the /proc and /sys files that detection reads. Starts as 4 cores with 8 logical CPUs and 16 GiB."""

from __future__ import annotations

from pathlib import Path

GIB = 1 << 30
V1_UNLIMITED = "9223372036854771712"


class FakeMachine:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._mounts: list[str] = []
        self._groups: list[str] = []
        self.cpus(4, threads=2)
        self.cpuinfo("Test CPU 9000", "fpu avx2 fma f16c avx_vnni")
        self.meminfo(MemTotal=16 * GIB, MemFree=2 * GIB, MemAvailable=12 * GIB, SwapTotal=0, SwapFree=0)
        self.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")

    def cpus(self, n_cores: int, threads: int) -> None:
        """Logical CPU i is a hardware thread of core i modulo n_cores."""
        n_logical = n_cores * threads
        self.write("sys/devices/system/cpu/online", f"0-{n_logical - 1}")
        self.allow(f"0-{n_logical - 1}")
        for cpu in range(n_logical):
            siblings = ",".join(str(cpu % n_cores + n_cores * thread) for thread in range(threads))
            self.write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings)

    def allow(self, cpus: str) -> None:
        self.write("proc/self/status", f"Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}\nThreads:\t1")

    def cpuinfo(self, name: str, flags: str) -> None:
        self.write("proc/cpuinfo", f"processor\t: 0\nmodel name\t: {name}\nflags\t\t: {flags}\n\nprocessor\t: 1")

    def meminfo(self, **n_bytes: int) -> None:
        lines = [f"{name}:{value // 1024:>15} kB" for name, value in n_bytes.items()]
        self.write("proc/meminfo", "\n".join([*lines, "HugePages_Total:       0"]))

    def mount(self, point: str, group: str, *, controllers: str = "", below: str = "/") -> None:
        """Mount a hierarchy (version 2 without controllers) showing `below` at `point`; `group` is this process's."""
        kind = "cgroup" if controllers else "cgroup2"
        self._mounts.append(f"30 23 0:26 {below} {point} rw,nosuid shared:9 - {kind} {kind} rw,{controllers}")
        self._groups.append(f"{len(self._groups)}:{controllers}:{group}")
        self.write("proc/self/mountinfo", "\n".join(["22 1 8:1 / / rw - ext4 /dev/sda rw", *self._mounts]))
        self.write("proc/self/cgroup", "\n".join(self._groups))
        (self.root / point.lstrip("/")).mkdir(parents=True, exist_ok=True)
