"""`freehold serve`: from options to a running server.

Owns the checks of options against each other, what is printed at the start, and the log on standard error. The server
itself is `freehold.server`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold import settings
from freehold.errors import RequestError
from freehold.hardware import detect
from freehold.hub import DEFAULT_MODEL, Store
from freehold.server.app import AppOptions, create_app
from freehold.server.endpoints import all_endpoints
from freehold.server.guard import ApiKeys, GuardRules, allowed_hosts, checked_origins, is_loopback
from freehold.server.metrics import Metrics
from freehold.server.pool import ModelPool, PoolLimits
from freehold.server.queue import QueueLimits
from freehold.server.run import Server, bind, run
from freehold.server.service import Service, ServiceLimits
from freehold.terminal.console import Progress, note, printable
from freehold.terminal.library import Library, LoadOptions, only_model, read_models

_MAX_SECONDS = 10**9
_LISTED = 10  # models in the first lines


@dataclass(frozen=True)
class ServeOptions:
    """As `terminal.serve_options` says; timeout 0 is no limit, max_body a size like "32M"."""

    models: Sequence[str]
    host: str
    port: int
    api_keys: Sequence[str]
    api_key_file: Path | None
    insecure_no_key: bool
    cors_origins: Sequence[str]
    only: bool
    any_name: bool
    preload: bool
    max_models: int | None
    keep_alive: float
    max_running: int
    max_queue: int
    timeout: float
    max_body: str
    grace: float
    enforce: bool
    effort: str | None
    strip_volatile: bool
    log_requests: bool


def serve(options: ServeOptions, loading: LoadOptions) -> int:
    """Run the server until it is told to end; the exit status. Raises FreeholdError for what keeps it from starting."""
    for name in ("grace", "timeout", "keep_alive"):
        if not abs(getattr(options, name)) <= _MAX_SECONDS:
            shown = name.replace("_", "-")
            raise RequestError(f"--{shown} is {getattr(options, name)}; expected at most {_MAX_SECONDS} seconds")
    if loading.context is not None and loading.context < 1:
        raise RequestError(f"--context is {loading.context}; expected a whole number of tokens, at least 1")
    chosen = settings.load()
    keys = ApiKeys(_keys(options, chosen.api_keys))
    guard, max_body = _guard(options, keys), _size(options.max_body)
    if options.preload and not options.models:
        raise RequestError("--preload loads the MODELs that are named, but none is; name one")
    sockets = bind(options.host, options.port)  # before anything is fetched or loaded for nothing
    _log_to_stderr()
    store = Store(chosen.home)
    names, paths = read_models(_models(options, chosen.model, store), store, lambda name: _fetch(name, store))
    stored = frozenset(names) - paths.keys()
    library = Library(paths, store, loading, stored if options.only else None)
    pool = ModelPool(
        loader=library,
        limits=PoolLimits(detect(chosen).memory_budget, options.max_models, options.keep_alive),
        queue=QueueLimits(options.max_running, options.max_queue),
        default=only_model(names, library) if options.any_name else None,
    )
    service = Service(pool, Metrics(), ServiceLimits(options.timeout or None, options.enforce, options.effort))
    endpoints = all_endpoints(strip_volatile=options.strip_volatile)
    app = create_app(service, endpoints, AppOptions(max_body, log_bodies=options.log_requests, guard=guard))
    port = sockets[0].getsockname()[1]

    def ready() -> None:
        served = [card.name for card in pool.cards()]
        print(printable(greeting(options.host, port, served, bool(keys))), file=sys.stderr, flush=True)

    preload = names if options.preload else ()
    return run(Server(app, service, grace=options.grace, preload=preload, ready=ready), sockets)


def greeting(host: str, port: int, models: Sequence[str], has_keys: bool) -> str:
    """What people need to know to use the server: what is served, where, and what to tell their tools."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    base = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
    more = f" and {len(models) - _LISTED} more" if len(models) > _LISTED else ""
    key = "YOUR_KEY" if has_keys else "none"
    return "\n".join(
        (
            f"Freehold serves {', '.join(models[:_LISTED]) or 'no model yet'}{more} at {base}",
            "",
            f"  OpenAI     OPENAI_BASE_URL={base}/v1 OPENAI_API_KEY={key}",
            f"  Anthropic  ANTHROPIC_BASE_URL={base} ANTHROPIC_API_KEY={key}",
            f"  Ollama     OLLAMA_HOST={base}" + (f" OLLAMA_API_KEY={key}" if has_keys else ""),
            "",
            "Every request needs an API key. Ctrl-C ends the server." if has_keys else "Ctrl-C ends the server.",
        )
    )


def _models(options: ServeOptions, wished: str | None, store: Store) -> Sequence[str]:
    """What to serve besides the store: what was named, else FREEHOLD_MODEL, else the default if there is nothing."""
    if options.models:
        return options.models
    if options.only:
        raise RequestError("--only serves the MODELs that are named, but none is; name one")
    if wished is not None:
        return [wished]
    return [] if store.models() else [DEFAULT_MODEL]


def _guard(options: ServeOptions, keys: ApiKeys) -> GuardRules:
    if not keys and not options.insecure_no_key and not is_loopback(options.host):
        raise RequestError(
            f"--host {options.host} can be reached by others than this machine; set a key with --api-key, "
            f"--api-key-file or FREEHOLD_API_KEYS, or let everybody in with --insecure-no-key"
        )
    return GuardRules(allowed_hosts(options.host), checked_origins(options.cors_origins), keys)


def _keys(options: ServeOptions, from_environment: Sequence[str]) -> list[str]:
    from_file = []
    if options.api_key_file is not None:
        try:
            lines = options.api_key_file.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise RequestError(
                f"{options.api_key_file} is not UTF-8 (byte {error.start}); expected a key a line"
            ) from None
        from_file = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not from_file:
            raise RequestError(f"{options.api_key_file} holds no key; expected one a line")
    return [*options.api_keys, *from_environment, *from_file]


def _size(text: str) -> int:
    try:
        size = settings.parse_size(text)
    except ValueError:
        size = 0
    if size < 1:
        raise RequestError(f"--max-body is {text!r}; expected a size such as 32M or 500k")
    return size


def _fetch(name: str, store: Store) -> None:
    from freehold.hub.sources import pull  # only a first use fetches anything

    with Progress(f"downloading {name}") as progress:
        pull(name, store, progress=progress, note=note)


def _log_to_stderr() -> None:
    """One line for each request and each load, with the time; warnings of the libraries as well."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger("freehold").setLevel(logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # its warnings are about slow callbacks, not for users
