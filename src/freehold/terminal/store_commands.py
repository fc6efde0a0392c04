"""The commands about the models that are here: ls, show, rm, verify, du, prune, export, import.

Owns their names, options and help texts, as `cli` does for the others, which adds these to its own. The work is done in
`report`, `describe` and `manage`, imported by the command that needs them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from freehold.errors import RequestError
from freehold.terminal import run_options
from freehold.terminal.console import note
from freehold.terminal.guard import GuardedCommand

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model of the store.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Models of the store.")]
AnyNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME...]", show_default=False, help="Models of the store. Default: all."),
]
As = Annotated[
    str | None, typer.Option("--as", metavar="NAME", show_default=False, help="Another name than the model's own.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program, in the order of its help."""
    for command in (ls, show, rm, verify, du, prune, export):
        app.command(cls=GuardedCommand)(command)
    app.command("import", cls=GuardedCommand)(import_)


def ls(
    as_json: run_options.AsJson = False,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also what the catalogue could fetch.")] = False,
) -> None:
    """List the models in the store: size, format, when they were last used."""
    from freehold.terminal.report import list_models, packed_elsewhere, render_models

    rows = list_models(everything)
    print(_json(rows) if as_json else render_models(rows))
    if remark := packed_elsewhere():
        note(remark)


def show(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A catalogue name, fetched or not, a model directory or a .gguf file."),
    ],
    as_json: run_options.AsJson = False,
    weights: run_options.Weights = "auto",
) -> None:
    """Describe a model and the memory it needs here.

    Parameters in all and for each token, formats and bytes by what they are for, context, chat template, licence, and
    the memory for weights and KV cache. Only the files' headers are read. Of a model that is not here, the catalogue's
    shapes tell the same, as an estimate.
    """
    from freehold.terminal.describe import describe_model, render_model

    facts = describe_model(model, weights)
    print(_json(facts) if as_json else render_model(facts))


def rm(names: Names, yes: Yes = False, as_json: run_options.AsJson = False) -> None:
    """Delete models from the store, with their packed weights.

    Asks first on a terminal. A model that a process has loaded stays. Of files that the store only links to, the links
    go and the files stay.
    """
    from freehold.terminal.manage import remove_models

    removed = remove_models(names, yes)
    if as_json:
        print(_json(removed))


def verify(names: AnyNames = None, as_json: run_options.AsJson = False) -> None:
    """Read the files of stored models again, and compare them with what was fetched.

    Says for every file whether it is whole: against the SHA-256 that was recorded with the model, or that the catalogue
    pins. The exit status is 2 if any is damaged.
    """
    from freehold.terminal.manage import damage_note, render_checks, verify_models

    rows = verify_models(names or [])
    print(_json(rows) if as_json else render_checks(rows))
    if remark := damage_note(rows):
        note(remark)
        raise typer.Exit(2)


def du(as_json: run_options.AsJson = False) -> None:
    """Show what the store takes of the disk.

    Models, packed weights, interrupted downloads, and what is left of the disk.
    """
    from freehold.terminal.manage import describe_usage, render_usage

    facts = describe_usage()
    print(_json(facts) if as_json else render_usage(facts))


def prune(
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", min=0, show_default=False, help="Also models that were not used for so long."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete. Without, asks on a terminal.")] = False,
    as_json: run_options.AsJson = False,
) -> None:
    """Delete what nobody needs any more from the store.

    Interrupted downloads, what killed processes left, packed weights of models that are gone. What is being fetched, or
    is loaded, stays. Shows what would go, and deletes it only with --yes or when you agree.
    """
    if older_than is not None and older_than != older_than:
        raise RequestError("--older-than is not a number of days")
    from freehold.terminal.manage import prune as run
    from freehold.terminal.manage import render_pruned

    facts = run(older_than, yes, ask=not as_json)
    print(_json(facts) if as_json else render_pruned(facts))


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model of the store, a model directory or a .gguf file.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write; must not exist.")],
    name: As = None,
    as_json: run_options.AsJson = False,
) -> None:
    """Write a model to one file, for a machine without a network.

    The file is a plain tar: freehold.json, which says what is in it with SHA-256 digests, then the model's files.
    `freehold import` takes it in at the other end.
    """
    from freehold.terminal.manage import export as run

    facts = run(model, file, name)
    print(_json(facts) if as_json else facts["path"])


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An archive that `freehold export` wrote.")],
    name: As = None,
    as_json: run_options.AsJson = False,
) -> None:
    """Put the model of an archive into the store, verified.

    Interrupted, nothing is left. A name of the catalogue is taken only by the files that the catalogue pins.
    """
    from freehold.terminal.manage import import_archive

    facts = import_archive(file, name)
    print(_json(facts) if as_json else facts["path"])


def _json(value: Any) -> str:
    return json.dumps(value, indent=2)
