"""The FREEHOLD_* variables: defaults, meanings, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from freehold.errors import RequestError
from freehold.settings import MIN_MEMORY, Settings, default_home, load, parse_size

HOME = {"HOME": "/home/me"}


def test_nothing_set() -> None:
    assert load({**HOME, "XDG_DATA_HOME": "/data", "FREEHOLD_DEBUG": "1"}).unknown == ()
    settings = load({**HOME, "FREEHOLD_ISA": "", "FREEHOLD_THREADS": "  "})
    assert settings == Settings(home=settings.home)


def test_everything_set() -> None:
    env = {
        "FREEHOLD_HOME": "/models",
        "FREEHOLD_ISA": "AVX2",
        "FREEHOLD_THREADS": "3",
        "FREEHOLD_MEMORY": "1.5GiB",
        "FREEHOLD_MODEL": "smollm2",
        "FREEHOLD_PACKED": "Off",
    }
    assert load(env) == Settings(Path("/models"), "avx2", 3, 3 << 29, "smollm2", packed=False)


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_THREADS", "7")
    assert load().n_threads == 7


def test_home_is_absolute_and_expanded() -> None:
    assert load({"FREEHOLD_HOME": "models"}).home == Path(os.getcwd(), "models")
    assert load({**HOME, "FREEHOLD_HOME": "~/models"}).home == Path("/home/me/models")
    assert load({**HOME, "FREEHOLD_HOME": "~"}).home == Path("/home/me")


@pytest.mark.parametrize(
    ("platform", "env", "expected"),
    [
        ("linux", HOME, "/home/me/.local/share/freehold"),
        ("linux", {**HOME, "XDG_DATA_HOME": "/data"}, "/data/freehold"),
        ("linux", {**HOME, "XDG_DATA_HOME": "relative"}, "/home/me/.local/share/freehold"),
        ("darwin", {**HOME, "XDG_DATA_HOME": "/data"}, "/home/me/Library/Application Support/freehold"),
        ("win32", {**HOME, "LOCALAPPDATA": "/local"}, "/local/freehold"),
        ("win32", {"USERPROFILE": "/profile"}, "/profile/AppData/Local/freehold"),
    ],
)
def test_where_the_store_lies(platform: str, env: dict[str, str], expected: str) -> None:
    assert default_home(env, platform) == Path(expected)


def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(RequestError, match="set FREEHOLD_HOME"):
        load({})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("FREEHOLD_ISA", "sse", "expected one of scalar, avx2, avx512, amx"),
        ("FREEHOLD_PACKED", "no", "expected on or off"),
        ("FREEHOLD_THREADS", "0", "from 1 to 1024"),
        ("FREEHOLD_THREADS", "1025", "from 1 to 1024"),
        ("FREEHOLD_THREADS", "-1", "from 1 to 1024"),
        ("FREEHOLD_THREADS", "two", "from 1 to 1024"),
        ("FREEHOLD_THREADS", "²", "from 1 to 1024"),
        ("FREEHOLD_MEMORY", "lots", "expected a size such as 8G"),
        ("FREEHOLD_MEMORY", "-8G", "expected a size such as 8G"),
        ("FREEHOLD_MEMORY", "8", "at least 16M; did you mean 8G"),
        ("FREEHOLD_MEMORY", "8K", "at least 16M$"),
    ],
)
def test_bad_values_name_the_variable_and_the_remedy(name: str, value: str, expected: str) -> None:
    with pytest.raises(RequestError, match=f"{name} is '{value}'.*{expected}"):
        load({**HOME, name: value})


def test_misspelt_variables_are_kept_for_the_doctor() -> None:
    assert load({**HOME, "FREEHOLD_THREAD": "2", "FREEHOLD_X": "1", "PATH": "/bin"}).unknown == (
        "FREEHOLD_THREAD",
        "FREEHOLD_X",
    )


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("0", 0), ("123", 123), ("1k", 1024), ("1KB", 1024), ("2MiB", 2 << 20), (" 8 G ", 8 << 30), ("0.5t", 1 << 39)],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@given(st.text(max_size=12))
@hypothesis_settings(max_examples=200, deadline=None)
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except ValueError:
        with pytest.raises(RequestError):
            load({**HOME, "FREEHOLD_MEMORY": text.strip() or "x"})


@given(st.integers(MIN_MEMORY, 1 << 49))
@hypothesis_settings(max_examples=50, deadline=None)
def test_plain_bytes_are_exact(n_bytes: int) -> None:
    assert load({**HOME, "FREEHOLD_MEMORY": str(n_bytes)}).memory == n_bytes
