"""The options of `freehold serve`: their names, bounds and help texts.

Owns nothing else, so that the command line can import it without the server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

DEFAULT_PORT = 11435
"""One above Ollama's, which may well be running too; --port 11434 takes its place for tools that look nowhere else."""

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL]...",
        show_default=False,
        help="Names, model directories or .gguf files, or NAME=PATH.",
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on. Others than this machine's own need an API key.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]
ApiKey = Annotated[
    list[str] | None,
    typer.Option(
        show_default=False,
        help="A key that requests must carry. Repeatable; FREEHOLD_API_KEYS and --api-key-file keep it out of `ps`.",
    ),
]
ApiKeyFile = Annotated[
    Path | None, typer.Option(show_default=False, help="A file with one key a line; empty lines and # are skipped.")
]
NoKey = Annotated[bool, typer.Option("--insecure-no-key", help="Let anybody who reaches --host use the server.")]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option(show_default=False, help="Web pages of this origin may use the server. Repeatable; * is every page."),
]
Only = Annotated[bool, typer.Option("--only", help="Serve the MODELs that are named and nothing else of the store.")]
AnyName = Annotated[bool, typer.Option("--any-name", help="Let the only model answer whatever name a request has.")]
Preload = Annotated[bool, typer.Option("--preload", help="Load the MODELs before the first request.")]
MaxModels = Annotated[
    int | None, typer.Option(min=1, show_default=False, help="Models in memory at once. Default: as many as fit.")
]
KeepAlive = Annotated[
    float, typer.Option(help="Seconds until an idle model is unloaded. 0: at once. -1: never, unless for another.")
]
MaxRunning = Annotated[int, typer.Option(min=1, help="Requests that a model answers at once.")]
MaxQueue = Annotated[int, typer.Option(min=0, help="Requests that may wait for a model; the next gets status 429.")]
Timeout = Annotated[
    float, typer.Option(min=0, help="Seconds a request may take in all, its wait included. 0: no limit.")
]
MaxBody = Annotated[str, typer.Option(help="Size of a request.")]
Grace = Annotated[float, typer.Option(min=0, help="Seconds that running requests get to finish on Ctrl-C or SIGTERM.")]
NoEnforce = Annotated[
    bool, typer.Option("--no-enforce", help="Do not bind tool calls to their declarations while they are generated.")
]
Effort = Annotated[
    Literal["low", "medium", "high"] | None,
    typer.Option(show_default=False, help="How much to think where a request does not say."),
]
StripVolatile = Annotated[
    bool,
    typer.Option(
        "--strip-volatile/--keep-volatile",
        help="Leave out the line of Claude Code's system prompt that changes with each request and defeats the cache.",
    ),
]
LogRequests = Annotated[
    bool, typer.Option("--log-requests", help="Write requests to the log in full. They hold what people wrote.")
]
