"""Control group limits, read from trees as real systems have them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_machine import GIB, V1_UNLIMITED, FakeMachine
from freehold.hardware.cgroup import Limits, parse_cpu_list, read_limits


@pytest.fixture
def fake(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path / "root")


def test_no_cgroups_no_limits(fake: FakeMachine) -> None:
    assert read_limits(fake.root) == Limits()


def test_v2_without_limits(fake: FakeMachine) -> None:
    fake.mount("/sys/fs/cgroup", "/user.slice")
    for name, text in (("cpu.max", "max 100000"), ("memory.max", "max"), ("memory.current", "5")):
        fake.write(f"sys/fs/cgroup/user.slice/{name}", text)
    assert read_limits(fake.root) == Limits()


def test_v2_takes_the_tightest_of_nested_groups(fake: FakeMachine) -> None:
    fake.mount("/sys/fs/cgroup", "/a/b/c")
    fake.write("sys/fs/cgroup/a/cpu.max", "250000 100000")
    fake.write("sys/fs/cgroup/a/memory.max", str(4 * GIB))
    fake.write("sys/fs/cgroup/a/memory.current", str(3 * GIB))
    fake.write("sys/fs/cgroup/a/b/cpu.max", "400000 100000")
    fake.write("sys/fs/cgroup/a/b/cpuset.cpus.effective", "0-5")
    fake.write("sys/fs/cgroup/a/b/c/cpu.max", "max 100000")
    fake.write("sys/fs/cgroup/a/b/c/memory.max", str(2 * GIB))
    fake.write("sys/fs/cgroup/a/b/c/memory.current", str(GIB // 2))
    fake.write("sys/fs/cgroup/a/b/c/cpuset.cpus.effective", "0,2,8")
    limits = read_limits(fake.root)
    assert limits.cpu_quota == 2.5
    assert limits.cpus == frozenset({0, 2})
    assert (limits.memory_room, limits.memory_limit) == (GIB, 4 * GIB)  # the outer group is fuller


def test_page_cache_counts_as_room(fake: FakeMachine) -> None:
    fake.mount("/sys/fs/cgroup", "/")
    fake.write("sys/fs/cgroup/memory.max", str(2 * GIB))
    fake.write("sys/fs/cgroup/memory.current", str(2 * GIB))
    fake.write("sys/fs/cgroup/memory.stat", f"anon 7\ninactive_file {GIB}\nactive_file {GIB // 2}\nshmem 3")
    assert read_limits(fake.root).memory_room == 3 * GIB // 2


def test_a_group_over_its_limit_has_no_room(fake: FakeMachine) -> None:
    fake.mount("/sys/fs/cgroup", "/")
    fake.write("sys/fs/cgroup/memory.max", "4096")
    fake.write("sys/fs/cgroup/memory.current", str(GIB))
    assert read_limits(fake.root).memory_room == 0


def v1(fake: FakeMachine, group: str, below: str = "/") -> None:
    fake.mount("/sys/fs/cgroup/cpu,cpuacct", group, controllers="cpu,cpuacct", below=below)
    fake.mount("/sys/fs/cgroup/memory", group, controllers="memory", below=below)
    fake.mount("/sys/fs/cgroup/cpuset", group, controllers="cpuset", below=below)


def test_v1_without_limits(fake: FakeMachine) -> None:
    v1(fake, "/")
    fake.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1")
    fake.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    fake.write("sys/fs/cgroup/memory/memory.limit_in_bytes", V1_UNLIMITED)
    fake.write("sys/fs/cgroup/memory/memory.stat", f"hierarchical_memory_limit {V1_UNLIMITED}")
    assert read_limits(fake.root) == Limits()


def test_v1_nested(fake: FakeMachine) -> None:
    v1(fake, "/pod/box")
    fake.write("sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us", "50000")
    fake.write("sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us", "100000")
    fake.write("sys/fs/cgroup/cpu,cpuacct/pod/box/cpu.cfs_quota_us", "-1")
    fake.write("sys/fs/cgroup/memory/pod/box/memory.limit_in_bytes", str(3 * GIB))
    fake.write("sys/fs/cgroup/memory/pod/box/memory.usage_in_bytes", str(2 * GIB))
    fake.write("sys/fs/cgroup/memory/pod/box/memory.stat", f"total_inactive_file {GIB}\ntotal_active_file 0")
    fake.write("sys/fs/cgroup/cpuset/pod/box/cpuset.cpus", "1-2")
    assert read_limits(fake.root) == Limits(0.5, frozenset({1, 2}), 3 * GIB, 2 * GIB)


def test_v1_limit_of_a_parent_that_the_container_cannot_see(fake: FakeMachine) -> None:
    v1(fake, "/docker/abc", below="/docker/abc")
    fake.write("sys/fs/cgroup/memory/memory.limit_in_bytes", V1_UNLIMITED)
    fake.write("sys/fs/cgroup/memory/memory.stat", f"hierarchical_memory_limit {GIB}")
    assert read_limits(fake.root).memory_limit == GIB


@pytest.mark.parametrize(
    ("group", "below", "expected"),
    [
        ("/docker/abc", "/docker/abc", "."),  # the container's own group is mounted
        ("/docker/abc/job", "/docker/abc", "job"),
        ("/", "/", "."),  # a cgroup namespace
        ("/../../outside", "/", "."),  # a process moved out of its namespace
        ("/elsewhere", "/docker/abc", "."),
        ("/docker/abcdef", "/docker/abc", "."),  # not below, although it starts alike
        ("/gone/deeper", "/", "."),  # directories that do not exist: the limits above still count
    ],
)
def test_where_this_process_stands(fake: FakeMachine, group: str, below: str, expected: str) -> None:
    fake.mount("/sys/fs/cgroup", group, below=below)
    fake.write(f"sys/fs/cgroup/{expected}/cpu.max", "150000 100000")
    fake.write("sys/fs/cgroup/other/cpu.max", "1000 100000")
    assert read_limits(fake.root).cpu_quota == 1.5


def test_v1_controllers_beside_an_empty_v2(fake: FakeMachine) -> None:
    v1(fake, "/x")
    fake.mount("/sys/fs/cgroup/unified", "/x")
    fake.write("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "300000")
    fake.write("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000")
    fake.write("sys/fs/cgroup/unified/x/cgroup.procs", "1")
    assert read_limits(fake.root) == Limits(cpu_quota=3.0)


@pytest.mark.parametrize("text", ["", "x y", "100000", "-5 100000", "100000 0", "1 2 3", "\0\0"])
def test_nonsense_is_no_limit(fake: FakeMachine, text: str) -> None:
    fake.mount("/sys/fs/cgroup", "/")
    for name in ("cpu.max", "memory.max", "memory.stat", "cpuset.cpus.effective", "cpuset.cpus"):
        fake.write(f"sys/fs/cgroup/{name}", "words" if name == "memory.max" else text or "-")
    limits = read_limits(fake.root)
    assert (limits.cpu_quota, limits.memory_limit) == (None, None)


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=50, deadline=None)
def test_malformed_tables_never_raise(tmp_path_factory: pytest.TempPathFactory, groups: str, mounts: str) -> None:
    fake = FakeMachine(tmp_path_factory.mktemp("m"))
    (fake.root / "proc/self/cgroup").write_text(groups, errors="replace")
    (fake.root / "proc/self/mountinfo").write_text(mounts, errors="replace")
    assert read_limits(fake.root).cpu_quota is None


@given(st.frozensets(st.integers(0, 300), max_size=40))
@settings(max_examples=100, deadline=None)
def test_cpu_lists_round_trip(cpus: frozenset[int]) -> None:
    assert parse_cpu_list(",".join(map(str, sorted(cpus)))) == cpus


@pytest.mark.parametrize(("text", "n_cpus"), [("", 0), ("\n", 0), ("0-3,8", 5), ("7", 1), ("0-65535", 65536)])
def test_cpu_lists(text: str, n_cpus: int) -> None:
    assert len(parse_cpu_list(text)) == n_cpus


@pytest.mark.parametrize("text", ["a", "3-1", "1-", "-1", "0-99999999999", "1:2"])
def test_bad_cpu_lists(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_cpu_list(text)
