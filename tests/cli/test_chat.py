"""The interactive chat: conversation, commands, interruptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from freehold.terminal.ask import AnswerOptions
from freehold.terminal.chat import Chat
from freehold.terminal.editor import open_block, unfence
from scripted_model import scripted


class Typist:
    """Types what a test gives it; an exception is raised instead of typed."""

    def __init__(self, *inputs: str | type[BaseException]) -> None:
        self.inputs = list(inputs)

    def read(self) -> str:
        if not self.inputs:
            raise EOFError
        item = self.inputs.pop(0)
        if not isinstance(item, str):
            raise item
        return item


@pytest.fixture
def chat(request: pytest.FixtureRequest) -> Any:
    """A chat with a model that repeats its last user message."""
    with scripted(lambda prompt: prompt[-8:].encode(), context=128) as model:
        yield Chat(model, AnswerOptions())


def said(chat: Chat) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in chat.messages]


def test_a_conversation_carries_its_history(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.run(Typist("first", "second"))
    assert said(chat) == [("user", "first"), ("assistant", "first"), ("user", "second"), ("assistant", "stsecond")]
    assert capsys.readouterr().out == "first\nstsecond\n"


def test_system_clear_and_exit(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.run(Typist("/system be brief", "hello", "/system", "/clear", "/exit", "never read"))
    assert said(chat) == [("system", "be brief")]
    assert "system: be brief" in capsys.readouterr().err


def test_help_names_every_command(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    from freehold.terminal.chat import COMMANDS

    chat.handle("/help")
    text = capsys.readouterr().err
    assert all(command in text for command in COMMANDS)


def test_unknown_commands_get_the_nearest(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.run(Typist("/sav x", "/qqqq"))
    err = capsys.readouterr().err
    assert "did you mean /save?" in err
    assert "unknown command /qqqq; /help lists them" in err
    assert chat.messages == []


def test_what_only_looks_like_a_command_is_text(chat: Chat) -> None:
    chat.run(Typist("/usr/bin/env is what?", " /exit"))
    assert [content for role, content in said(chat) if role == "user"] == ["/usr/bin/env is what?", "/exit"]


def test_save_and_load(chat: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chat.json"
    chat.run(Typist("/system S", "hello", f"/save {path}", "/clear", "/system T", f"/load {path}", f"/save {path}"))
    assert said(chat) == [("system", "S"), ("user", "hello"), ("assistant", "Shello")]
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert "error" not in capsys.readouterr().err


def test_save_does_not_replace_other_files(chat: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    chat.run(Typist(f"/save {path}", "/save", f"/save {tmp_path / 'no' / 'such' / 'place'}"))
    assert path.read_text() == "precious"
    err = capsys.readouterr().err
    assert err.count("freehold: error:") == 3
    assert "not a saved chat" in err


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"freehold_chat": 2, "model": "m", "messages": []}',
        b'{"freehold_chat": 1, "messages": []}',
        b'{"freehold_chat": 1, "model": "m", "messages": {}}',
        b'{"freehold_chat": 1, "model": "m", "system": 3, "messages": []}',
        b'{"freehold_chat": 1, "model": "m", "messages": [{"role": "system", "content": "x"}]}',
        b'{"freehold_chat": 1, "model": "m", "messages": [{"role": "user", "content": ["x"]}]}',
        b'{"freehold_chat": 1, "model": "m", "messages": [3]}',
    ],
)
def test_hostile_files_cost_one_line(
    chat: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any
) -> None:
    path = tmp_path / "evil.json"
    path.write_bytes(content)
    chat.handle("hello")
    before = chat.messages
    capsys.readouterr()
    chat.run(Typist(f"/load {path}"))
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert "not a saved chat" in lines[0]
    assert chat.messages == before


def test_missing_files_and_directories_cost_one_line(
    chat: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.run(Typist(f"/load {tmp_path}", f"/load {tmp_path / 'none'}", "/load"))
    assert capsys.readouterr().err.count("freehold: error:") == 3


def test_stats(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.run(Typist("hello", "/stats"))
    err = capsys.readouterr().err
    assert "1 answers, 6 tokens" in err
    assert "of 128 tokens in use" in err


def test_ctrl_c_at_the_prompt_keeps_the_chat(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.run(Typist(KeyboardInterrupt, "hello"))
    assert len(chat.messages) == 2
    assert "Ctrl-D" in capsys.readouterr().err


def test_ctrl_c_keeps_the_partial_answer(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []

    def printable(text: str) -> Any:
        shown.append(text)
        if len(shown) == 3:
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr("freehold.terminal.chat.printable", lambda text: text)
    chat.handle("abcdefgh")
    monkeypatch.setattr("freehold.terminal.chat.sys.stdout.write", printable)
    chat.handle("12345678")
    monkeypatch.undo()
    assert chat.messages[-2].content == "12345678"
    assert chat.messages[-1].role == "assistant"
    assert chat.messages[-1].content.startswith("123")
    assert "(stopped)" in capsys.readouterr().err


def test_ctrl_c_before_the_first_token_forgets_the_question(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat._model, "chat", interrupted)
    chat.run(Typist("hello"))
    assert chat.messages == []
    assert "(stopped)" in capsys.readouterr().err


def test_a_full_context_costs_the_question_only(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.run(Typist("hello", "x" * 200, "again"))
    assert [content for role, content in said(chat) if role == "user"] == ["hello", "again"]
    assert "the context is 128" in capsys.readouterr().err


def test_model_output_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with scripted("a\x1b]0;evil\x07b") as model:
        Chat(model, AnswerOptions()).handle("q")
    assert "\x1b" not in capsys.readouterr().out


def test_fenced_blocks() -> None:
    assert open_block('"""')
    assert open_block('"""\nline\n\nline')
    assert not open_block('"""\nline\n"""')
    assert not open_block('"""Docstring."""\nimport x')
    assert unfence('"""\na\n\nb\n"""') == "a\n\nb"
    assert unfence('"""Docstring."""\nimport x') == '"""Docstring."""\nimport x'


@pytest.mark.parametrize(
    ("typed", "messages"),
    [
        ("hello\n", ["hello"]),
        ("one \\\ntwo\n", ["one \ntwo"]),
        ('"""\na\n\nb\\\n"""\nnext\n', ["a\n\nb\\", "next"]),
        ("no line break at the end", ["no line break at the end"]),
        ("ends with \\", ["ends with \\"]),
        ('"""\nnever closed', ['"""\nnever closed']),
    ],
)
def test_plain_lines(typed: str, messages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from freehold.terminal.editor import PlainEditor

    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    editor = PlainEditor()
    assert [editor.read() for _ in messages] == messages
    with pytest.raises(EOFError):
        editor.read()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("hello\r", "hello"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ('"""\ra\r\rb\r"""\r', "a\n\nb"),
        ("\x1b[200~pasted\nlines\n\x1b[201~\r", "pasted\nlines\n"),
        ("wrong\x15right\r", "right"),
    ],
)
def test_line_editor_keys(keys: str, text: str, tmp_path: Path) -> None:
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    from freehold.terminal.editor import LineEditor

    history = tmp_path / "store" / "history"
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text(keys)
        assert LineEditor(history, ()).read() == text
    assert history.stat().st_mode & 0o777 == 0o600
    assert history.read_text()
