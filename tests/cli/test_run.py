"""`freehold run` with a prompt: what goes where, and every way it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import Loads, Pipe, Run
from freehold.errors import EngineError, ModelFileError
from freehold.terminal.console import write_answer
from scripted_model import ScriptedModel


def test_the_answer_alone_is_on_stdout(freehold: Run, loads: Loads) -> None:
    calls = loads("Paris")
    outcome = freehold("run", "What is the capital of France?")
    assert (outcome.status, outcome.out, outcome.err) == (0, "Paris\n", "")
    assert calls[0]["model"] is None


def test_model_and_options_arrive(freehold: Run, loads: Loads, tmp_path: Path) -> None:
    calls = loads(lambda prompt: prompt.encode())
    (tmp_path / "config.json").write_text("{}")
    outcome = freehold(
        "run",
        str(tmp_path),
        "Q",
        "--system",
        "S",
        "--precision",
        "reference",
        "--weights",
        "native",
        "--threads",
        "2",
        "--context",
        "99",
    )
    assert outcome.out == "SQ\n"
    assert calls[0] == {
        "model": str(tmp_path),
        "precision": "reference",
        "weights": "native",
        "measure_rounding": True,
        "context": 99,
        "threads": 2,
        "conversations": 1,
        "prefix_cache": True,
        "progress": calls[0]["progress"],
        "note": calls[0]["note"],
    }


def test_json_is_one_object(freehold: Run, loads: Loads) -> None:
    loads("Paris")
    outcome = freehold("run", "-m", "smollm2", "Q?", "--json")
    report = json.loads(outcome.out)
    assert list(report) == ["model", "answer", "reasoning", "tool_calls", "finish_reason", "usage", "timings"]
    assert (report["answer"], report["finish_reason"]) == ("Paris", "stop")
    assert (report["reasoning"], report["tool_calls"]) == (None, [])
    usage = {"prompt_tokens": 5, "cached_tokens": 0, "completion_tokens": 6, "reasoning_tokens": 0}
    assert report["usage"] == usage
    assert list(report["timings"]) == [
        "load_seconds",
        "prefill_seconds",
        "decode_seconds",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
    ]


def test_stop_and_max_tokens(freehold: Run, loads: Loads) -> None:
    loads("one two three")
    assert freehold("run", "Q", "--stop", "three", "--stop", " two").out == "one\n"
    outcome = freehold("run", "Q", "--max-tokens", "3")
    assert outcome.out == "one\n"
    assert "cut short: --max-tokens 3 is reached" in outcome.err
    loads("x" * 100)
    assert "the context of 16 tokens is full" in freehold("run", "Q", "--context", "16").err


def test_verbose_speeds_go_to_stderr(freehold: Run, loads: Loads) -> None:
    loads("Paris")
    outcome = freehold("run", "Q", "--verbose")
    assert outcome.out == "Paris\n"
    assert "answer 6 tokens" in outcome.err


def test_piped_text_follows_the_prompt(freehold: Run, loads: Loads, pipe: Pipe) -> None:
    loads(lambda prompt: prompt.encode())
    pipe(b"piped text\n")
    assert freehold("run", "Summarise").out == "Summarise\n\npiped text\n"
    pipe(b"only this")
    assert freehold("run").out == "only this\n"


@pytest.mark.parametrize("args", [["run"], ["run", "--json"], ["run", "-m", "smollm2"]])
def test_no_prompt_and_no_terminal(freehold: Run, loads: Loads, args: Any) -> None:
    loads()
    outcome = freehold(*args)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("freehold: error: no prompt")
    assert outcome.err.count("\n") == 1


def test_piped_rubbish_is_refused(freehold: Run, loads: Loads, pipe: Pipe) -> None:
    loads()
    pipe(b"a\xff")
    assert "0xff at offset 1" in freehold("run", "Q").err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--top-k", "-1"),
        ("--min-p", "2"),
        ("--max-tokens", "0"),
        ("--stop", ""),
    ],
)
def test_bad_sampling_values_name_themselves(freehold: Run, loads: Loads, option: str, value: Any) -> None:
    loads()
    outcome = freehold("run", "Q", option, value)
    assert outcome.status == 2
    assert option.strip("-").replace("-", "_") in outcome.err
    assert outcome.err.count("\n") == 1


def test_usage_errors_end_with_two(freehold: Run) -> None:
    assert freehold("run", "--no-such-option").status == 2
    assert freehold("run", "Q", "--temperature", "hot").status == 2
    assert freehold("run", "Q", "--precision", "perfect").status == 2
    assert freehold("no-such-command").status == 2


def test_unknown_model_is_one_line(freehold: Run) -> None:
    outcome = freehold("run", "no-such-model", "Q")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("freehold: error: ")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ModelFileError("bad\nfile \x1b[31m"), 2, "freehold: error: bad file ␛[31m\n"),
        (OSError(13, "Permission denied", "x"), 2, "freehold: error: [Errno 13] Permission denied: 'x'\n"),
        (MemoryError(), 2, "freehold: error: out of memory"),
        (EngineError("dead"), 2, "freehold: error: dead\n"),
        (ZeroDivisionError("oops"), 1, "freehold: error: a bug in Freehold: ZeroDivisionError: oops (FREEHOLD_DEBUG=1"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_every_failure_has_its_line_and_status(
    freehold: Run, monkeypatch: pytest.MonkeyPatch, error: Any, status: int, line: str
) -> None:
    def load(model: Any, **wishes: Any) -> None:
        raise error

    monkeypatch.setattr("freehold.terminal.opening.load", load)
    monkeypatch.setattr("freehold.terminal.guard.drop_stdout", lambda: None)
    outcome = freehold("run", "Q")
    assert (outcome.status, outcome.out) == (status, "")
    assert outcome.err.startswith(line)
    assert "Traceback" not in outcome.err


def test_debug_shows_the_traceback(freehold: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(model: Any, **wishes: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("freehold.terminal.opening.load", load)
    monkeypatch.setenv("FREEHOLD_DEBUG", "1")
    assert "Traceback" in freehold("run", "Q").err


def test_control_sequences_reach_a_pipe_but_not_a_terminal(
    freehold: Run, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads("a\x1b[2J\x9bb\r\n\tc")
    assert freehold("run", "Q").out == "a\x1b[2J\x9bb\r\n\tc\n"

    written: list[str] = []

    class Terminal:
        write = staticmethod(written.append)
        flush = staticmethod(lambda: None)
        isatty = staticmethod(lambda: True)

    monkeypatch.setattr(sys, "stdout", Terminal)
    write_answer("a\x1b[2J\x9bb\r\n\tc")
    monkeypatch.undo()
    assert "".join(written) == "a␛[2J\ufffdb␍\n\tc"


def test_interrupt_cancels_the_generation(freehold: Run, loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    loads("x" * 100)

    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("freehold.terminal.display.write_answer", interrupted)
    assert freehold("run", "Q").status == 130


def test_scripted_model_is_deterministic() -> None:
    assert ScriptedModel("a")._next([1, 2]) == 3
