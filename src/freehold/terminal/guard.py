"""The one place where what went wrong in a command becomes a line on standard error and an exit status.

Owns the statuses: 1 a bug of ours, 2 anything the user can put right, 130 Ctrl-C, 141 nobody reads our output any more.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand

from freehold.errors import FreeholdError
from freehold.terminal.console import drop_stdout, note


class GuardedCommand(TyperCommand):
    """A command that never ends in a traceback, unless FREEHOLD_DEBUG is set."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, where a closed pipe is still caught
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            drop_stdout()
            raise typer.Exit(141) from None
        except Exception as error:
            raise typer.Exit(_report(error)) from None
        return result


def _report(error: Exception) -> int:
    """Print the one line and return the exit status."""
    if os.environ.get("FREEHOLD_DEBUG"):
        import traceback  # wanted by developers only

        traceback.print_exception(error)
    if isinstance(error, MemoryError):
        note("error: out of memory; use a smaller model or a smaller --context (`freehold doctor` shows the limits)")
        return 2
    if isinstance(error, FreeholdError | OSError):
        note(f"error: {_one_line(error)}")
        return 2
    note(f"error: a bug in Freehold: {type(error).__name__}: {_one_line(error)} (FREEHOLD_DEBUG=1 shows the traceback)")
    return 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
