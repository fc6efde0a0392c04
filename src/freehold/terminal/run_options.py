"""The options of `freehold run`, and those that other commands share with it: their names, bounds and help texts.

Owns nothing else, so that the command line stays a list of commands. Those of `serve` alone are in `serve_options`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

PrecisionName = Literal["reference", "exact", "fast"]
RoundingName = Literal["auto", "native", "q8", "q4"]

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A catalogue name, a model directory or a .gguf file.")]
First = Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False, help="What to run.")]
Second = Annotated[str | None, typer.Argument(metavar="PROMPT", show_default=False, help="What to ask.")]
ModelName = Annotated[
    str | None,
    typer.Option("--model", "-m", show_default=False, help="The model; what follows is then the prompt."),
]
System = Annotated[str | None, typer.Option(show_default=False, help="System message.")]
Temperature = Annotated[float | None, typer.Option(show_default=False, help="0 is greedy; higher is more varied.")]
TopP = Annotated[float | None, typer.Option(show_default=False, help="Sample from this share of probability.")]
TopK = Annotated[int | None, typer.Option(show_default=False, help="Sample from the K likeliest tokens.")]
MinP = Annotated[
    float | None,
    typer.Option(show_default=False, help="Drop tokens below this share of the likeliest one's probability."),
]
Seed = Annotated[int | None, typer.Option(show_default=False, help="Makes sampling repeatable.")]
MaxTokens = Annotated[int | None, typer.Option(show_default=False, help="Most tokens an answer may have.")]
Stop = Annotated[
    list[str] | None, typer.Option(show_default=False, help="End the answer before this text. Repeatable.")
]
Effort = Annotated[
    Literal["low", "medium", "high"] | None,
    typer.Option(show_default=False, help="How much to think, for a model that can be told."),
]
HideReasoning = Annotated[bool, typer.Option("--hide-reasoning", help="Say only for how long the model thought.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Speeds and token counts on standard error.")]
Context = Annotated[
    int | None,
    typer.Option(show_default=False, help="Tokens a conversation may hold. Default: the model's, or what fits."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, show_default=False, help="Worker threads. Default: one per usable core.")
]
Precision = Annotated[
    PrecisionName,
    typer.Option(
        help="exact: 16-bit activations. fast: 8-bit ones for weights of 6 bits and less, quicker prompts and some "
        "more rounding. reference: slow float32."
    ),
]
Weights = Annotated[
    RoundingName,
    typer.Option(
        help="q8, q4: what is published in 16 or 32 bits, in 8 or 4; says what it costs. native: as published. "
        "auto: as published, but gpt-oss's attention and head in 8 bits."
    ),
]
Measure = Annotated[
    bool, typer.Option("--measure/--no-measure", help="Measure what q8 or q4 costs, when a model is first loaded so.")
]
