"""The command `freehold plan`: its options and help text, and the order of its work.

Owns nothing else: what is planned is `planner`'s, what is shown `plan`'s and `roofline`'s, imported when it runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from freehold import __version__
from freehold.errors import RequestError
from freehold.terminal import run_options
from freehold.terminal.console import note
from freehold.terminal.guard import GuardedCommand

FormatName = Literal["published", "fp8", "q8_0", "int4", "q4_k_m"]

Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL...]", show_default=False, help="What to run. Default: whatever runs well there."),
]
Chips = Annotated[
    list[str] | None,
    typer.Option("--chip", "--chips", metavar="NAME[,NAME...]", show_default=False, help="Where: parts as in `chips`."),
]
Here = Annotated[bool, typer.Option("--this-machine", help="Here, which is the default without --chip.")]
Context = Annotated[
    int | None,
    typer.Option(min=1, show_default=False, help="Tokens per sequence. Default: 8192, or what the model has."),
]
Batch = Annotated[int, typer.Option(min=1, max=65536, help="Sequences at once.")]
Format = Annotated[
    FormatName | None,
    typer.Option("--format", show_default=False, help="Of the weights. Default: the most precise that fits."),
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE.svg", show_default=False, help="Draw a roofline with the model's points.")
]
Recalibrate = Annotated[bool, typer.Option("--recalibrate", help="Measure this machine again.")]
UserFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", show_default=False, help="A .csv file with parts or figures of your own."),
]


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(cls=GuardedCommand)(plan)


def plan(
    models: Models = None,
    chip: Chips = None,
    this_machine: Here = False,
    context: Context = None,
    batch: Batch = 1,
    to: Format = None,
    plot: Plot = None,
    recalibrate: Recalibrate = False,
    user_file: UserFile = None,
    as_json: run_options.AsJson = False,
) -> None:
    """Tell whether a model fits, how fast it will be, what limits it, and what would change that.

    MODEL is what `run` takes, downloaded or not. Speeds are intervals: what is expected, and the bounds it should lie
    within. PASS fits with certainty, FAIL does not, UNKNOWN depends on settings and on what else runs there.

    `freehold plan gpt-oss-120b --chip H20,H200,910C` lays parts side by side, each with as many as it takes.

    This machine is measured once, in less than 30 s; for other parts, published measurements tell what runtimes reach
    (docs/planner.md).
    """
    from freehold import planner
    from freehold.terminal.plan import describe_change, describe_plan, render_many, render_one, render_ranking
    from freehold.terminal.roofline import write_roofline

    names = [name.strip() for word in chip or () for name in word.split(",") if name.strip()]
    if chip and not names:
        raise RequestError("--chip names no part; expected one as `freehold chips` lists them, such as H100")
    subjects = [planner.Subject(model) for model in dict.fromkeys(models or ())]
    places = planner.targets(names, this_machine, __version__, user_file=user_file, recalibrate=recalibrate, note=note)
    facts: dict[str, Any]
    if not subjects:
        if len(places) > 1:
            raise RequestError("without MODEL, what runs well is listed for one place; name a model, or one part")
        plans, n_left_out = planner.rank(places[0], context, batch)
        facts = {"plans": [describe_plan(one) for one in plans], "not_fitting": n_left_out}
        text = render_ranking(plans, n_left_out)
    else:
        plans = [one for subject in subjects for one in planner.choose(subject, places, to, context, batch)]
        changes = planner.changes(subjects[0], plans[0]) if len(plans) == 1 else []
        facts = {"plans": [describe_plan(one) for one in plans], "changes": [describe_change(one) for one in changes]}
        text = render_one(plans[0], changes) if len(plans) == 1 else render_many(plans)
    if plot is not None:
        write_roofline(plans, plot)
        note(f"wrote {plot}")
    print(json.dumps(facts, indent=2) if as_json else text)
