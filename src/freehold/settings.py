"""What the environment says about how Freehold should run, checked once and frozen.

Owns the names, meanings and limits of every FREEHOLD_* variable, and where the model store lies by default.
Imports only the errors; nothing here looks at the machine, creates a directory or remembers a value.

    FREEHOLD_HOME      directory of the model store        (default: the user's data directory)
    FREEHOLD_ISA       scalar | avx2 | avx512 | amx        (default: the best this processor has)
    FREEHOLD_THREADS   worker threads, 1 to 1024           (default: one per usable core)
    FREEHOLD_MEMORY    memory budget, e.g. 8G or 1.5GiB    (default: what the machine can spare)
    FREEHOLD_MODEL     the model to use when none is named (default: the catalogue's)
    FREEHOLD_PACKED    on | off: keep packed weights       (default: on)
    FREEHOLD_API_KEYS  keys of `serve`, between commas     (default: none)
    FREEHOLD_DEBUG     any value: tracebacks with errors   (default: one line per error)
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from freehold.errors import RequestError

ISA_LEVELS = ("scalar", "avx2", "avx512", "amx")
MAX_THREADS = 1024
MIN_MEMORY = 16 << 20
"""Below this a budget is a forgotten suffix ("8" for "8G"), not a wish."""

_NAMES = frozenset(
    f"FREEHOLD_{name}" for name in ("HOME", "ISA", "THREADS", "MEMORY", "MODEL", "PACKED", "API_KEYS", "DEBUG")
)
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Settings:
    """The checked environment. None means "not set": whoever needs the value decides.

    memory is in bytes; packed is whether packed weights are kept and used. unknown lists FREEHOLD_* variables that mean
    nothing here, most likely misspelt.
    """

    home: Path
    isa: str | None = None
    n_threads: int | None = None
    memory: int | None = None
    model: str | None = None
    packed: bool = True
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    unknown: tuple[str, ...] = ()


def load(env: Mapping[str, str] | None = None) -> Settings:
    """Read the FREEHOLD_* variables of `env` (default: the process environment); an empty value counts as not set.

    Raises RequestError naming the variable, the value found and what is accepted.
    """
    env = os.environ if env is None else env
    values = {name: value.strip() for name, value in env.items() if name.startswith("FREEHOLD_") and value.strip()}
    home = values.get("FREEHOLD_HOME")
    return Settings(
        home=_path(home, env) if home else default_home(env),
        isa=_isa(values.get("FREEHOLD_ISA")),
        n_threads=_threads(values.get("FREEHOLD_THREADS")),
        memory=_memory(values.get("FREEHOLD_MEMORY")),
        model=values.get("FREEHOLD_MODEL"),
        packed=_switch("FREEHOLD_PACKED", values, default=True),
        api_keys=tuple(key.strip() for key in values.get("FREEHOLD_API_KEYS", "").split(",") if key.strip()),
        unknown=tuple(sorted(values.keys() - _NAMES)),
    )


def default_home(env: Mapping[str, str], platform: str = sys.platform) -> Path:
    """The store's place when FREEHOLD_HOME is not set: the platform's directory for a user's data.

    Raises RequestError when the environment names no home directory.
    """
    if platform == "win32":
        local = env.get("LOCALAPPDATA")
        return Path(local) / "freehold" if local else _user(env) / "AppData" / "Local" / "freehold"
    if platform == "darwin":
        return _user(env) / "Library" / "Application Support" / "freehold"
    data = env.get("XDG_DATA_HOME", "")
    # The XDG specification has relative values ignored.
    return Path(data) / "freehold" if os.path.isabs(data) else _user(env) / ".local" / "share" / "freehold"


def parse_size(text: str) -> int:
    """Bytes from "1073741824", "8G", "8GB", "1.5 GiB". K, M, G, T are powers of 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a size: {text!r}")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _user(env: Mapping[str, str]) -> Path:
    home = env.get("HOME") or env.get("USERPROFILE") or os.path.expanduser("~")
    if not os.path.isabs(home):
        raise RequestError("this user has no home directory; set FREEHOLD_HOME to a directory for the model store")
    return Path(home)


def _path(value: str, env: Mapping[str, str]) -> Path:
    if value == "~" or value.startswith(("~/", "~\\")):  # quoted in a service file, where no shell expands it
        return _user(env) / value[2:]
    return Path(os.path.abspath(value))


def _isa(value: str | None) -> str | None:
    if value is None or value.lower() in ISA_LEVELS:
        return value and value.lower()
    raise RequestError(f"FREEHOLD_ISA is {value!r}; expected one of {', '.join(ISA_LEVELS)}")


def _threads(value: str | None) -> int | None:
    if value is None:
        return None
    if re.fullmatch(r"\d{1,4}", value, re.ASCII) and 1 <= int(value) <= MAX_THREADS:
        return int(value)
    raise RequestError(f"FREEHOLD_THREADS is {value!r}; expected a whole number from 1 to {MAX_THREADS}")


def _memory(value: str | None) -> int | None:
    if value is None:
        return None
    try:
        n_bytes = parse_size(value)
    except ValueError:
        raise RequestError(f"FREEHOLD_MEMORY is {value!r}; expected a size such as 8G, 1.5GiB or 512M") from None
    if n_bytes < MIN_MEMORY:
        hint = f"; did you mean {value}G?" if value.isdigit() else ""
        raise RequestError(f"FREEHOLD_MEMORY is {value!r}, {n_bytes} bytes; expected at least 16M{hint}")
    return n_bytes


def _switch(name: str, values: Mapping[str, str], default: bool) -> bool:
    value = values.get(name, "on" if default else "off")
    if value.lower() not in ("on", "off"):
        raise RequestError(f"{name} is {value!r}; expected on or off")
    return value.lower() == "on"
