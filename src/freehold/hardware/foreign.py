"""Facts that are not in Linux's files: asked of macOS, Windows or the C library, as well as they answer.

Owns the platform calls. Every function gives None or nothing rather than raise: a machine that tells less than we would
like still runs models.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """Bytes; None where the system does not tell."""

    total: int | None = None
    available: int | None = None
    swap_total: int = 0
    swap_used: int = 0


def cpu_name() -> str:
    """The processor's name, or at least its architecture."""
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine() or "unknown"


def flags() -> set[str] | None:
    """Processor features in Linux's spelling, as far as macOS names them; None elsewhere."""
    if sys.platform != "darwin":
        return None
    named = {
        "hw.optional.avx2_0": "avx2",
        "hw.optional.fma": "fma",
        "hw.optional.f16c": "f16c",
        "hw.optional.avx512f": "avx512f",
        "hw.optional.neon": "asimd",
        "hw.optional.arm.FEAT_DotProd": "asimddp",
        "hw.optional.arm.FEAT_I8MM": "i8mm",
        "hw.optional.arm.FEAT_BF16": "bf16",
    }
    return {flag for key, flag in named.items() if _sysctl(key) == "1"}


def physical_cores() -> int | None:
    """Physical cores, on macOS."""
    text = _sysctl("hw.physicalcpu")
    return int(text) if text and text.isdecimal() else None


def memory() -> Memory:
    """Total and available memory; available is None on systems that only tell the total."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        total = 0
    size = _sysctl("hw.memsize")
    total = int(size) if size and size.isdecimal() else total
    return Memory(total if total > 0 else None)


def amx_supported() -> bool | None:
    """Whether the Linux kernel hands out AMX tile state; None where it cannot be asked. Changes nothing."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    import ctypes  # slow to import, and asked for on AMX machines only

    arch_prctl, get_supported, tile_data = 158, 0x1021, 18  # asm/unistd_64.h, asm/prctl.h, the XSAVE component
    supported = ctypes.c_uint64(0)
    try:
        status = ctypes.CDLL(None).syscall(arch_prctl, get_supported, ctypes.byref(supported))
    except (OSError, AttributeError):
        return None
    return status == 0 and bool(supported.value >> tile_data & 1)


def _sysctl(key: str) -> str | None:
    if sys.platform != "darwin":
        return None
    import subprocess  # not needed on the common platform

    command = ["/usr/sbin/sysctl", "-n", key]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


if sys.platform == "win32":

    def _windows_memory() -> Memory:
        import ctypes  # slow to import

        class Status(ctypes.Structure):  # MEMORYSTATUSEX
            _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
                (name, ctypes.c_ulonglong)
                for name in (
                    "total",
                    "available",
                    "page_total",
                    "page_available",
                    "virtual",
                    "virtual_free",
                    "extended",
                )
            ]

        status = Status(length=ctypes.sizeof(Status))
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            return Memory()
        return Memory(status.total, status.available)

else:

    def _windows_memory() -> Memory:
        return Memory()
