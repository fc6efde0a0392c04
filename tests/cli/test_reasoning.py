"""Reasoning, effort and calls on the terminal: `freehold run` with a prompt, and the chat."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from command_line import Loads, Run
from freehold.errors import RequestError
from freehold.terminal import transcript
from freehold.terminal.ask import AnswerOptions
from freehold.terminal.chat import Chat
from freehold.terminal.console import write_aside
from freehold.terminal.display import Display
from freehold.text.chat import Message
from scripted_model import HarmonyRoles, harmony, scripted

THOUGHTFUL = harmony(
    "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>Paris<|return|>"
)
CALLING = harmony('<|channel|>commentary to=functions.rm json<|message|>{"path":"/"}<|call|>')


class Screen(io.StringIO):
    """A terminal, as far as a stream can tell."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Standard output is a terminal that can dim."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Screen()
    monkeypatch.setattr("freehold.terminal.console.sys", SimpleNamespace(stdout=screen, stderr=sys.stderr))
    return screen


def chat_with(answer: Any, **options: Any) -> Chat:
    return Chat(scripted(answer, chat_format=HarmonyRoles), AnswerOptions(**options))


def test_standard_output_has_the_answer_alone(freehold: Run, loads: Loads) -> None:
    loads(THOUGHTFUL, chat_format=HarmonyRoles)
    outcome = freehold("run", "Q")
    assert (outcome.status, outcome.out, outcome.err) == (0, "Paris\n", "Easy.\n\n")
    outcome = freehold("run", "Q", "--hide-reasoning")
    assert (outcome.out, outcome.err) == ("Paris\n", "(thought for 5 tokens)\n")


def test_a_terminal_has_the_reasoning_dimmed_before_the_answer(screen: Screen) -> None:
    with scripted(THOUGHTFUL, chat_format=HarmonyRoles) as model:
        Display().show(model.chat([Message("user", "q")], stream=True))
        shown = screen.getvalue()
        assert shown.replace("\x1b[22m\x1b[2m", "") == "\x1b[2mEasy.\n\n\x1b[22mParis\n"
        screen.truncate(0)
        Display(hide_reasoning=True).show(model.chat([Message("user", "q")], stream=True))
        assert screen.getvalue().lstrip("\0") == "\x1b[2m(thought for 5 tokens)\n\x1b[22mParis\n"


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_some_terminals_cannot_dim(screen: Screen, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    write_aside("hm \x1b[2J")
    assert screen.getvalue() == "hm ␛[2J"


def test_json_has_fields_of_their_own(freehold: Run, loads: Loads) -> None:
    loads(THOUGHTFUL, chat_format=HarmonyRoles)
    report = json.loads(freehold("run", "Q", "--json").out)
    assert (report["answer"], report["reasoning"], report["tool_calls"]) == ("Paris", "Easy.", [])
    assert (report["usage"]["reasoning_tokens"], report["finish_reason"]) == (5, "stop")
    loads(CALLING, chat_format=HarmonyRoles)
    report = json.loads(freehold("run", "Q", "--json").out)
    assert (report["answer"], report["reasoning"], report["finish_reason"]) == ("", None, "tool_calls")
    assert report["tool_calls"][0]["function"] == {"name": "rm", "arguments": '{"path":"/"}'}


def test_a_call_is_told_of(freehold: Run, loads: Loads) -> None:
    loads(CALLING, chat_format=HarmonyRoles)
    outcome = freehold("run", "Q")
    assert (outcome.status, outcome.out) == (0, "")
    assert 'called the tool \'rm\', which it was not offered, with {"path":"/"}' in outcome.err


def test_a_budget_spent_on_thinking_is_told_of(freehold: Run, loads: Loads) -> None:
    loads(THOUGHTFUL, chat_format=HarmonyRoles)
    outcome = freehold("run", "Q", "--max-tokens", "12")
    assert outcome.out == ""
    assert "cut short while the model was thinking: --max-tokens 12 is reached" in outcome.err


def test_effort_arrives_or_is_refused(freehold: Run, loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    render = HarmonyRoles.render

    def recorded(self: Any, messages: Any, **options: Any) -> Any:
        asked.append(options.get("reasoning_effort"))
        return render(self, messages, **options)

    monkeypatch.setattr(HarmonyRoles, "render", recorded)
    loads(THOUGHTFUL, chat_format=HarmonyRoles)
    assert freehold("run", "Q", "--effort", "low").out == "Paris\n"
    assert asked[-1] == "low"
    assert freehold("run", "Q").out == "Paris\n"
    assert asked[-1] is None
    assert freehold("run", "Q", "--effort", "extreme").status == 2
    loads("Paris")
    for options in ([], ["--json"]):
        outcome = freehold("run", "Q", "--effort", "low", *options)
        assert (outcome.status, outcome.out) == (2, "")
        assert "scripted has no reasoning effort to set" in outcome.err


def test_the_chat_keeps_reasoning_and_ids(capsys: pytest.CaptureFixture[str]) -> None:
    chat = chat_with(THOUGHTFUL)
    chat.handle("q")
    assert capsys.readouterr() == ("Paris\n", "Easy.\n\n")
    [_, answer] = chat.messages
    assert (answer.content, answer.reasoning, answer.ids) == ("Paris", "Easy.", tuple(THOUGHTFUL))
    chat.handle("q again")
    assert cast(HarmonyRoles, chat._model.chat_format).messages[1].ids == tuple(THOUGHTFUL)


def test_ids_that_say_more_than_was_shown_are_not_kept() -> None:
    chat = chat_with(THOUGHTFUL, stop=("ris",))
    chat.handle("q")
    assert (chat.messages[-1].content, chat.messages[-1].ids) == ("Pa", None)
    chat = chat_with(harmony("<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant") + CALLING)
    chat.handle("q")
    assert (chat.messages[-1].content, chat.messages[-1].tool_calls, chat.messages[-1].ids) == ("Wait.", (), None)


def test_answers_without_a_word_in_the_chat(capsys: pytest.CaptureFixture[str]) -> None:
    chat = chat_with(CALLING)
    chat.handle("q")
    assert chat.messages == []
    err = capsys.readouterr().err
    assert "called the tool 'rm'" in err
    assert "only called tools, which this chat has not; the question is forgotten" in err
    chat = chat_with(THOUGHTFUL, max_tokens=12)
    chat.handle("q")
    assert chat.messages == []
    assert "was still thinking; the question is forgotten" in capsys.readouterr().err


def test_effort_in_the_chat(capsys: pytest.CaptureFixture[str]) -> None:
    chat = chat_with(THOUGHTFUL, hide_reasoning=True)
    chat.handle("/effort")
    chat.handle("/effort low")
    chat.handle("q")
    out, err = capsys.readouterr()
    assert cast(HarmonyRoles, chat._model.chat_format).options["reasoning_effort"] == "low"
    assert err == "effort: as the model has it\neffort: low\n(thought for 5 tokens)\n"
    assert out == "Paris\n"

    class Typist:
        inputs = iter(["/effort much", "/effort"])

        def read(self) -> str:
            try:
                return next(self.inputs)
            except StopIteration:
                raise EOFError from None

    chat.run(Typist())
    err = capsys.readouterr().err
    assert "the reasoning effort is 'much'; expected low, medium, high" in err
    assert "effort: low" in err


def test_interrupted_thinking_begins_a_new_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("freehold.terminal.display.write_answer", interrupted)
    chat = chat_with(THOUGHTFUL)
    chat.handle("q")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Easy.\n")


def test_transcripts_keep_reasoning(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    turns = (Message("user", "q"), Message("assistant", "a", "because", ids=(1, 2)))
    transcript.save(path, transcript.Transcript("m", None, turns))
    loaded = transcript.load(path)
    assert loaded.messages == turns
    assert loaded.messages[1].ids is None
    assert "ids" not in path.read_text()


@pytest.mark.parametrize("turn", [{"role": "user", "reasoning": "x"}, {"role": "assistant", "reasoning": 1}])
def test_transcripts_with_odd_reasoning_are_refused(tmp_path: Path, turn: Any) -> None:
    path = tmp_path / "chat.json"
    chat = {"freehold_chat": 1, "model": "m", "system": None, "messages": [{"content": "c", **turn}]}
    path.write_text(json.dumps(chat))
    with pytest.raises(RequestError, match="message 0 needs"):
        transcript.load(path)
