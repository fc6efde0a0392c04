"""The command line: one function per command.

Owns the commands and their help texts, but for `plan` and those about stored models, which `terminal.plan_command` and
`terminal.store_commands` add; options that are many or shared are in `terminal.run_options` and
`terminal.serve_options`. The work is done below, in `terminal` and under it; slow modules are imported by the command
that needs them, so that help appears at once. Errors and exit statuses are `terminal.guard`'s.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from freehold import __version__
from freehold.errors import RequestError
from freehold.terminal import plan_command, run_options, serve_options, store_commands
from freehold.terminal.console import note, open_missing_streams
from freehold.terminal.guard import GuardedCommand

if TYPE_CHECKING:
    from freehold.prepared import SamplingOptions

Container = Literal["safetensors", "gguf"]
Quant = Literal["q8_0", "q4_k"]
ChipKind = Literal["gpu", "workstation", "consumer", "npu", "tpu", "apu", "cpu"]
ChipOrder = Literal["name", "memory", "bandwidth", "bf16", "fp8", "int8", "tpp", "pd", "year"]

app = typer.Typer(
    name="freehold",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich would take longer to import than everything else together
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the `freehold` command."""
    open_missing_streams()
    # Start-up makes objects by the hundred thousand, and all of them stay: looking for garbage so often takes 60 ms.
    gc.set_threshold(100_000)
    app(prog_name="freehold")


def _spare_cores(precision: run_options.PrecisionName) -> None:
    """Only the reference precision computes with numpy's BLAS, whose idle threads spin while a model loads."""
    if precision != "reference":
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported


def _version(wanted: bool) -> None:
    if wanted:
        print(f"freehold {__version__}")
        raise typer.Exit


@app.callback()
def freehold(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run open-weight language models on your own processor.

    `freehold run "What is the capital of France?"` fetches the default model on first use and answers.
    """


@app.command(cls=GuardedCommand, context_settings={"allow_extra_args": True})
def run(
    ctx: typer.Context,
    first: run_options.First = None,
    second: run_options.Second = None,
    model: run_options.ModelName = None,
    system: run_options.System = None,
    temperature: run_options.Temperature = None,
    top_p: run_options.TopP = None,
    top_k: run_options.TopK = None,
    min_p: run_options.MinP = None,
    seed: run_options.Seed = None,
    max_tokens: run_options.MaxTokens = None,
    stop: run_options.Stop = None,
    effort: run_options.Effort = None,
    hide_reasoning: run_options.HideReasoning = False,
    as_json: run_options.AsJson = False,
    verbose: run_options.Verbose = False,
    context: run_options.Context = None,
    threads: run_options.Threads = None,
    precision: run_options.Precision = "exact",
    weights: run_options.Weights = "auto",
    measure: run_options.Measure = True,
) -> None:
    """Ask a model one question, or chat with it.

    With a PROMPT, or piped standard input, the answer goes to standard output and all else to standard error. Without,
    an interactive chat starts; /help lists its commands. What a model thinks is shown apart from its answer: dimmed on
    a terminal, on standard error where standard output is none.

    MODEL is a catalogue name (`freehold ls --all` lists them), a model directory or a .gguf file; without one, the
    default model answers. A single word alone is read as MODEL if it names a model of the catalogue or the store, or an
    existing model path, or is written as a path (./x, /x, ~/x, x.gguf); every other text is the PROMPT. -m NAME removes
    doubt.

    Piped input joins the prompt: first PROMPT, then a blank line, then the piped text.

    Sampling options left out take what the model's publisher recommends, or greedy decoding.
    """
    _spare_cores(precision)  # before these imports, which bring numpy, tokenizers and the kernels
    from freehold.terminal.ask import AnswerOptions, ask, ask_json, check_effort
    from freehold.terminal.opening import open_model, read_request

    words = [word for word in (first, second, *ctx.args) if word is not None]
    request = read_request(words, model)
    if request.prompt is None and (as_json or not sys.stdin.isatty()):
        raise RequestError('no prompt; give one as in freehold run "Why is the sky blue?", or pipe it in')
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p, "seed": seed}
    sampling = cast("SamplingOptions", {name: value for name, value in given.items() if value is not None})
    options = AnswerOptions(system, sampling, max_tokens, tuple(stop or ()), verbose, effort, hide_reasoning)
    with open_model(
        request.model, precision=precision, weights=weights, measure=measure, context=context, threads=threads
    ) as loaded:
        check_effort(loaded, effort)
        if as_json:
            print(ask_json(loaded, cast(str, request.prompt), options))
        elif request.prompt is not None:
            ask(loaded, request.prompt, options)
        else:
            from freehold.terminal.chat import open_chat  # nothing but a chat needs the line editor

            open_chat(loaded, options)


@app.command(cls=GuardedCommand)
def serve(
    models: serve_options.Models = None,
    host: serve_options.Host = "127.0.0.1",
    port: serve_options.Port = serve_options.DEFAULT_PORT,
    api_key: serve_options.ApiKey = None,
    api_key_file: serve_options.ApiKeyFile = None,
    insecure_no_key: serve_options.NoKey = False,
    cors_origin: serve_options.CorsOrigin = None,
    only: serve_options.Only = False,
    any_name: serve_options.AnyName = False,
    preload: serve_options.Preload = False,
    max_models: serve_options.MaxModels = None,
    keep_alive: serve_options.KeepAlive = 300,
    max_running: serve_options.MaxRunning = 64,
    max_queue: serve_options.MaxQueue = 256,
    timeout: serve_options.Timeout = 3600,
    max_body: serve_options.MaxBody = "32M",
    grace: serve_options.Grace = 30,
    no_enforce: serve_options.NoEnforce = False,
    effort: serve_options.Effort = None,
    strip_volatile: serve_options.StripVolatile = True,
    log_requests: serve_options.LogRequests = False,
    context: run_options.Context = None,
    threads: run_options.Threads = None,
    precision: run_options.Precision = "exact",
    weights: run_options.Weights = "auto",
    measure: run_options.Measure = True,
) -> None:
    """Serve models to the tools that speak the APIs of OpenAI, Anthropic or Ollama.

    A model is loaded when a request first names it, and unloaded when it has been idle or another needs its memory.
    What is named here is fetched before the start if need be; a request never fetches anything. Whatever else the store
    holds is served too, unless --only is given.
    """
    _spare_cores(precision)
    from freehold.terminal.library import LoadOptions
    from freehold.terminal.serve import ServeOptions
    from freehold.terminal.serve import serve as run_server

    options = ServeOptions(
        models=tuple(models or ()),
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        api_key_file=api_key_file,
        insecure_no_key=insecure_no_key,
        cors_origins=tuple(cors_origin or ()),
        only=only,
        any_name=any_name,
        preload=preload,
        max_models=max_models,
        keep_alive=keep_alive,
        max_running=max_running,
        max_queue=max_queue,
        timeout=timeout,
        max_body=max_body,
        grace=grace,
        enforce=not no_enforce,
        effort=effort,
        strip_volatile=strip_volatile,
        log_requests=log_requests,
    )
    status = run_server(options, LoadOptions(precision, weights, measure, context, threads))
    raise typer.Exit(status)


@app.command(cls=GuardedCommand)
def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A model of the catalogue, a repository, a URL or a path.")
    ],
    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            show_default=False,
            help="Take a catalogue model of one pinned file from a file fetched by hand; verified all the same.",
        ),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy files that are on this machine already, instead of linking them.")
    ] = False,
) -> None:
    """Fetch a model into the store and verify it.

    NAME is a name of the catalogue (`freehold ls --all` lists them), as gpt-oss:20b; a repository of Hugging Face, as
    org/name, with :Q4_K_M for one quantisation of GGUF files and @v1 for a revision; ms:org/name for one of
    ModelScope; the URL of a .gguf file or of a folder with config.json; or a path.

    What is interrupted, the next pull goes on with. Files in the cache of huggingface_hub, or at a path, are linked,
    not copied. The usual variables have effect: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HOME; MODELSCOPE_DOMAIN,
    MODELSCOPE_API_TOKEN.
    """
    from freehold.terminal.pull import pull_model

    print(pull_model(name, from_file, copy))


store_commands.add_to(app)


@app.command(cls=GuardedCommand)
def doctor(as_json: run_options.AsJson = False) -> None:
    """Report what Freehold will use of this machine.

    Processor and kernels, cores, memory, measured bandwidth, store; and each problem found, with its remedy.
    """
    from freehold.terminal.report import describe_machine, render_machine

    facts = describe_machine()
    print(json.dumps(facts, indent=2) if as_json else render_machine(facts))


@app.command(cls=GuardedCommand)
def chips(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Show these parts in full.")] = None,
    vendor: Annotated[str | None, typer.Option(show_default=False, help="Only parts of this maker.")] = None,
    kind: Annotated[ChipKind | None, typer.Option(show_default=False, help="Only parts of this kind.")] = None,
    min_memory: Annotated[
        float | None, typer.Option(metavar="GB", min=0, show_default=False, help="Only parts with so much memory.")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            show_default=False, help="Only parts under this paragraph or word of the rule column: a.1, letter."
        ),
    ] = None,
    sort: Annotated[
        ChipOrder | None, typer.Option(show_default=False, help="Largest first; name: from A to Z. Default: by maker.")
    ] = None,
    on: Annotated[
        str | None, typer.Option(metavar="DATE", show_default=False, help="The day of the rules. Default: today.")
    ] = None,
    user_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="A .csv file with parts or figures of your own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, in base units.")] = False,
) -> None:
    """List processors, and where they fall under the US export rules.

    Without NAME a table. With one, everything known of that part, and the arithmetic of its classification on a day, as
    in `freehold chips H20 --on 2023-10-25`. A file of your own has columns of the catalogue (docs/chips.md): `name`
    and whatever it changes, or enough to describe a part that the catalogue does not have.

    Public figures, derived classes: information, not legal advice.
    """
    from freehold.terminal.chips import Filters, show_chips

    filters = Filters(vendor, kind, min_memory, rule)
    shown = show_chips(names or (), filters, sort=sort, on=on, user_file=user_file, as_json=as_json)
    print(json.dumps(shown, indent=2) if as_json else shown)


plan_command.add_to(app)


@app.command(cls=GuardedCommand)
def logits(
    model: run_options.Model,
    ids: Annotated[Path, typer.Option(help="Token ids: a .npy file, one dimension, integers.")],
    out: Annotated[Path, typer.Option(help="Where to write the logits: .npy, float32 [tokens, vocab].")],
    precision: run_options.Precision = "exact",
    weights: run_options.Weights = "auto",
    measure: run_options.Measure = True,
    threads: run_options.Threads = None,
) -> None:
    """Write the logits of a token sequence to a file.

    This is how to check Freehold against another implementation.
    """
    _spare_cores(precision)
    from freehold.terminal.logits import read_ids, write_logits
    from freehold.terminal.opening import open_model

    tokens = read_ids(ids)
    with open_model(model, precision=precision, weights=weights, measure=measure, threads=threads, context=1) as loaded:
        write_logits(loaded, tokens, out)
    note(f"wrote {len(tokens)} x {loaded.vocab_size} logits to {out}")


@app.command(cls=GuardedCommand)
def synth(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of the catalogue.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write: a new or empty directory.")],
    layers: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Only the first layers. Default: all of them.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Other seeds give other numbers.")] = 0,
    container: Annotated[
        Container, typer.Option("--format", help="The files of the publisher, or one .gguf file; the same numbers.")
    ] = "safetensors",
    quant: Annotated[
        Quant,
        typer.Option(help="What a .gguf file has most matrices in. Either format gets the numbers that this can hold."),
    ] = "q8_0",
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="The model's tokenizer: a tokenizer.json, or a directory with it and its templates.",
        ),
    ] = None,
) -> None:
    """Write a model with random weights.

    It has the exact shapes, number formats and file layout of the published model, so that speed can be measured and
    files tested without downloading it, by other engines as well. What it says means nothing.

    A tensor depends on its name, the seed and --quant only: fewer layers, or the other format, change none. With q4_k,
    embedding and head stay Q8_0, and so do matrices whose rows are no multiple of 256. The layer that predicts a second
    token in DeepSeek-V3 and GLM-4.5 is left out. Without a tokenizer, safetensors have none and serve `bench` and
    `logits`; a .gguf file has one of bytes and control tokens.
    """
    from freehold.terminal.synth import write_model

    path = write_model(name, directory, layers=layers, seed=seed, container=container, quant=quant, tokenizer=tokenizer)
    print(path)


@app.command(cls=GuardedCommand)
def bench(
    model: run_options.Model,
    pp: Annotated[int, typer.Option(min=1, help="Prompt tokens of the prefill measurement.")] = 512,
    tg: Annotated[int, typer.Option(min=2, help="Tokens generated in the decode measurement.")] = 64,
    depth: Annotated[int, typer.Option(min=1, help="Context in use when decode begins.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Runs counted, after one that is not; the median is reported.")] = 3,
    as_json: run_options.AsJson = False,
    threads: run_options.Threads = None,
    precision: run_options.Precision = "exact",
    weights: run_options.Weights = "auto",
    measure: run_options.Measure = True,
) -> None:
    """Measure the speed of a model on this machine.

    Prefill and decode in tokens per second, load time, peak memory, and how close decode comes to the memory's limit.
    """
    _spare_cores(precision)
    from freehold import kernels
    from freehold.benchmark import Workload
    from freehold.benchmark import measure as measure_speed
    from freehold.terminal.opening import open_model
    from freehold.terminal.speed import describe_bench, render_bench

    work = Workload(n_prefill=pp, n_decode=tg, depth=depth, batch=batch, n_runs=runs)
    with open_model(
        model,
        precision=precision,
        weights=weights,
        measure=measure,
        context=work.context,
        threads=threads,
        conversations=batch,
        prefix_cache=False,
    ) as loaded:
        loaded.settle()  # nothing else shall use the cores and the disk
        result = measure_speed(loaded, work)
    bandwidth = kernels.measure_bandwidth(loaded.n_threads)  # once the model is gone: it takes memory of its own
    facts = describe_bench(loaded, work, result, bandwidth, precision)
    print(json.dumps(facts, indent=2) if as_json else render_bench(facts))
