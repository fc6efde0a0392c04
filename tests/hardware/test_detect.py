"""What a machine is taken for, and what is said about it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from fake_machine import GIB, FakeMachine
from freehold.hardware import Machine, detect, foreign, problems
from freehold.hardware.detect import ASSUMED_MEMORY, MAX_HEADROOM
from freehold.settings import Settings


@pytest.fixture
def fake(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path / "root")


def look(fake: FakeMachine, n_threads: int | None = None, memory: int | None = None) -> Machine:
    return detect(Settings(home=fake.root / "home", n_threads=n_threads, memory=memory), root=fake.root)


def texts(machine: Machine) -> str:
    return "\n".join(f"{problem.what} -> {problem.remedy}" for problem in problems(machine))


def test_a_plain_machine(fake: FakeMachine) -> None:
    machine = look(fake)
    assert machine.cpu == "Test CPU 9000"
    assert machine.flags == ("avx2", "fma", "f16c", "avx_vnni")
    assert (machine.n_cores_logical, machine.n_cores_physical, machine.n_affinity) == (8, 4, 8)
    assert (machine.cpus, machine.n_usable, machine.n_threads) == ((0, 1, 2, 3), 4, 4)
    assert machine.limits == ("8 hardware threads share 4 cores; one thread per core is fastest",)
    assert (machine.memory_total, machine.memory_available, machine.memory_limit) == (16 * GIB, 12 * GIB, None)
    assert machine.memory_budget == 12 * GIB - 12 * GIB // 20
    assert (machine.huge_pages, machine.container, machine.virtual_machine) == ("madvise", None, False)
    assert machine.amx_permitted is None
    assert (machine.disk_free or 0) > 0
    assert problems(machine) == []


def test_this_machine_is_described_without_an_error() -> None:
    machine = detect(Settings(home=Path("/nowhere/at/all")))
    assert 1 <= machine.n_usable <= machine.n_cores_logical == os.cpu_count()
    assert 0 < machine.memory_budget < machine.memory_total
    assert json.dumps(dataclasses.asdict(machine), default=str)
    for problem in problems(machine):
        assert problem.what
        assert problem.remedy


def test_affinity(fake: FakeMachine) -> None:
    fake.allow("0,4-5")  # both threads of core 0 and one of core 1
    machine = look(fake)
    assert (machine.n_affinity, machine.cpus, machine.n_usable) == (3, (0, 5), 2)
    assert "CPU affinity allows 3 of 8 CPUs" in machine.limits
    assert "2 of 4 cores" in texts(machine)


def test_cpuset_below_affinity(fake: FakeMachine) -> None:
    fake.mount("/sys/fs/cgroup", "/")
    fake.write("sys/fs/cgroup/cpuset.cpus.effective", "2")
    machine = look(fake)
    assert (machine.cpus, machine.n_usable) == ((2,), 1)
    assert "the cgroup's cpuset allows 1 of them" in machine.limits


@pytest.mark.parametrize(
    ("quota", "n_usable"), [(50000, 1), (100000, 1), (199999, 1), (250000, 2), (400000, 4), (10**7, 4)]
)
def test_quota_rounds_down_but_never_to_nothing(fake: FakeMachine, quota: int, n_usable: int) -> None:
    fake.mount("/sys/fs/cgroup", "/")
    fake.write("sys/fs/cgroup/cpu.max", f"{quota} 100000")
    machine = look(fake)
    assert (machine.cpu_quota, machine.n_usable) == (quota / 1e5, n_usable)
    limited = quota < 400000
    assert any("quota" in reason for reason in machine.limits) == limited
    assert ("CPU quota" in texts(machine)) == limited


def test_threads_asked_for_are_started_and_judged(fake: FakeMachine) -> None:
    assert look(fake, n_threads=2).n_threads == 2
    machine = look(fake, n_threads=16)
    assert (machine.n_usable, machine.n_threads) == (4, 16)
    assert "asks for 16 threads, but 4" in texts(machine)


def test_without_topology_every_cpu_is_a_core(fake: FakeMachine, tmp_path: Path) -> None:
    bare = FakeMachine(tmp_path / "bare")
    for path in bare.root.rglob("thread_siblings_list"):
        path.unlink()
    machine = look(bare)
    assert (machine.n_cores_physical, machine.n_usable) == (8, 8)


def test_the_cgroup_bounds_memory(fake: FakeMachine) -> None:
    fake.mount("/sys/fs/cgroup", "/")
    fake.write("sys/fs/cgroup/memory.max", str(2 * GIB))
    fake.write("sys/fs/cgroup/memory.current", str(GIB))
    machine = look(fake)
    assert machine.memory_limit == 2 * GIB
    assert machine.memory_budget == GIB - (256 << 20)
    assert machine.memory_limits[0] == "the cgroup's memory limit of 2.15 GB leaves 1.07 GB"
    assert "only 0.81 GB of memory" in texts(machine)


def test_a_cgroup_limit_above_what_is_free_changes_nothing(fake: FakeMachine) -> None:
    fake.mount("/sys/fs/cgroup", "/")
    fake.write("sys/fs/cgroup/memory.max", str(15 * GIB))
    assert look(fake).memory_budget == 12 * GIB - 12 * GIB // 20


def test_headroom_is_bounded(fake: FakeMachine) -> None:
    fake.meminfo(MemTotal=512 * GIB, MemAvailable=500 * GIB)
    assert look(fake).memory_budget == 500 * GIB - MAX_HEADROOM
    fake.meminfo(MemTotal=GIB, MemAvailable=GIB // 4)
    assert look(fake).memory_budget == GIB // 8


def test_the_users_cap_only_lowers(fake: FakeMachine) -> None:
    machine = look(fake, memory=GIB)
    assert machine.memory_budget == GIB
    assert machine.memory_limits[-1] == "FREEHOLD_MEMORY allows 1.07 GB"
    assert look(fake, memory=64 * GIB).memory_budget == look(fake).memory_budget


def test_an_old_kernel_without_memavailable(fake: FakeMachine) -> None:
    fake.meminfo(MemTotal=16 * GIB, MemFree=2 * GIB)
    assert look(fake).memory_available == 2 * GIB


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "memory", foreign.Memory)
    machine = detect(Settings(home=tmp_path), root=tmp_path)
    assert machine.n_usable >= 1
    assert machine.memory_total == ASSUMED_MEMORY
    assert 0 < machine.memory_budget < ASSUMED_MEMORY
    assert "does not tell its memory size" in machine.memory_limits[0]
    assert (machine.huge_pages, machine.swap_total) == (None, 0)


def test_the_c_librarys_memory_size_is_the_fallback() -> None:
    total = foreign.memory().total
    assert total is not None
    assert total > 1 << 24


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        (".dockerenv", "", "docker"),
        ("run/.containerenv", "", "podman"),
        ("proc/version", "Linux version 5.15 (Microsoft@Microsoft.com) WSL2", "wsl"),
        ("run/systemd/container", "lxc", "lxc"),
        ("proc/version", "Linux version 6.1 (debian)", None),
    ],
)
def test_containers(fake: FakeMachine, file: str, text: str, expected: str | None) -> None:
    fake.write(file, text)
    assert look(fake).container == expected


def test_an_arm_server(fake: FakeMachine) -> None:
    fake.write(
        "proc/cpuinfo", "processor : 0\nFeatures : fp asimd asimddp i8mm\nCPU implementer : 0x41\nCPU part : 0xd40"
    )
    machine = look(fake)
    assert machine.flags == ("asimd", "asimddp", "i8mm")
    assert "implementer 0x41, part 0xd40" in machine.cpu
    fake.write("proc/device-tree/model", "Raspberry Pi 5\0")
    assert look(fake).cpu == "Raspberry Pi 5"


@pytest.mark.parametrize("hypervisor", [False, True])
def test_x86_without_avx2(fake: FakeMachine, hypervisor: bool) -> None:
    fake.cpuinfo("Old", "fpu sse2 " + "hypervisor" * hypervisor)
    machine = dataclasses.replace(look(fake), architecture="x86_64")
    assert ("virtual machine hides AVX2" in texts(machine)) == hypervisor
    assert ("this processor has no AVX2" in texts(machine)) != hypervisor
    assert problems(dataclasses.replace(machine, architecture="aarch64")) == []


@pytest.mark.parametrize("permitted", [True, False, None])
def test_amx_without_permission(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch, permitted: bool | None) -> None:
    monkeypatch.setattr(foreign, "amx_supported", lambda: permitted)
    fake.cpuinfo("New", "avx2 avx512f amx_tile amx_int8 amx_bf16")
    machine = look(fake)
    assert machine.amx_permitted is permitted
    assert ("does not hand out tile state" in texts(machine)) == (permitted is False)


def test_asking_for_amx_never_fails() -> None:
    assert foreign.amx_supported() in (True, False, None)


def test_more_problems(fake: FakeMachine) -> None:
    fake.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]")
    fake.meminfo(MemTotal=GIB, MemAvailable=GIB, SwapTotal=GIB, SwapFree=GIB // 2)
    machine = dataclasses.replace(look(fake), disk_free=GIB)
    said = texts(machine)
    for words in ("huge pages are off", "0.54 GB of swap", "only 0.81 GB of memory", "only 1.07 GB are free where"):
        assert words in said


def test_misspelt_variables_are_problems(fake: FakeMachine) -> None:
    settings = Settings(home=fake.root, unknown=("FREEHOLD_THREAD",))
    [problem] = problems(detect(settings, root=fake.root), settings)
    assert "FREEHOLD_THREAD means nothing" in problem.what
