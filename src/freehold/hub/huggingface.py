"""Hugging Face: what a repository holds, by its own client, and what its cache on this machine already has.

Owns the translation of a repository into a Listing. The client brings HF_ENDPOINT, HF_TOKEN and the token file,
HF_HUB_OFFLINE and HF_HOME; the bytes go through our own transfer, so that every source is verified and resumed alike.
A file that lies in the client's cache is linked, never fetched or copied.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.errors import DownloadError
from freehold.hub.listing import Listing, printable, stored_names
from freehold.hub.names import Repository
from freehold.hub.remote import RemoteFile
from freehold.hub.selection import select
from freehold.hub.web import ATTEMPTS, TIMEOUT_SECONDS, WebClient, user_endpoint

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_YES = ("1", "on", "yes", "true")


def list_model(repository: Repository, note: Callable[[str], None] | None = None) -> Listing:
    """The files of `repository` that a model needs. Without a network, those of the cache.

    Raises DownloadError with what to do (a token, a licence to accept, another revision), RequestError for a
    quantisation that is not there.
    """
    if any(os.environ.get(name, "").lower() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        cached = _list_cache(repository)
        if cached is None:
            raise DownloadError(f"HF_HUB_OFFLINE is set, and the cache at {cache_directory()} has no {repository.repo}")
        return cached
    # Imported here, as only a pull needs it: it takes 0.3 s.
    from huggingface_hub import constants, get_token, hf_hub_url

    endpoint = user_endpoint("HF_ENDPOINT", constants.ENDPOINT)
    token = get_token()
    try:
        info = _model_info(repository, endpoint, token)
    except _Unreachable as error:
        cached = _list_cache(repository)
        if cached is None:
            raise DownloadError(str(error)) from error
        if note is not None:
            note(f"{error}; taking {repository.repo} from the cache at {cache_directory()}")
        return cached
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or () if isinstance(sibling.rfilename, str)}
    selection = select(list(siblings), repository.quant, repository.repo)
    revision = info.sha if info.sha and _COMMIT.fullmatch(info.sha) else repository.revision or "main"
    folder = _cached_repository(repository)
    files = []
    for path, name in stored_names(selection, repository.repo).items():
        sibling = siblings[path]
        sha256 = _digest(sibling.lfs.get("sha256") if sibling.lfs else None, _SHA256)
        git_oid = None if sibling.lfs else _digest(sibling.blob_id, _COMMIT)
        url = hf_hub_url(repository.repo, path, revision=revision, endpoint=endpoint)
        local = _cached_file(folder, revision, path, sha256 or git_oid)
        files.append(RemoteFile(name, url, _size(sibling.size), sha256, git_oid, local))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    client = WebClient(endpoint, headers, _denied(repository, endpoint, token))
    return Listing(selection, files, str(repository), revision, _licence(info), client)


def cache_directory() -> Path:
    """Where the client keeps what it fetched, by the same variables."""
    env = os.environ
    named = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return Path(os.path.expanduser(named))
    home = env.get("HF_HOME") or os.path.join(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(home)) / "hub"


class _Unreachable(DownloadError):
    """The hub did not answer."""


def _model_info(repository: Repository, endpoint: str, token: str | None) -> ModelInfo:
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub_errors

    # The base of the client's own HTTP errors, whichever HTTP library its version is built on.
    network_errors: tuple[type[BaseException], ...] = (OSError, hub_errors.HfHubHTTPError.__bases__[0])
    api = HfApi(endpoint=endpoint, token=token or False, library_name="freehold")
    for attempt in range(ATTEMPTS):
        try:
            return api.model_info(
                repository.repo, revision=repository.revision, files_metadata=True, timeout=TIMEOUT_SECONDS
            )
        except hub_errors.GatedRepoError as error:
            raise DownloadError(_denied(repository, endpoint, token)) from error
        except hub_errors.RevisionNotFoundError as error:
            raise DownloadError(f"{repository.repo} at {endpoint} has no revision {repository.revision!r}") from error
        except hub_errors.RepositoryNotFoundError as error:
            raise DownloadError(
                f"{endpoint} has no repository {repository.repo}, or none that {_access(token)}"
            ) from error
        except hub_errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (401, 403):
                raise DownloadError(_denied(repository, endpoint, token)) from error
            if status < 500 or attempt == ATTEMPTS - 1:
                raise _Unreachable(f"{endpoint} answered {status} for {repository.repo}") from error
        except hub_errors.OfflineModeIsEnabled as error:
            raise _Unreachable("HF_HUB_OFFLINE is set") from error
        except network_errors as error:
            if attempt == ATTEMPTS - 1:
                raise _Unreachable(
                    f"{endpoint} cannot be reached ({printable(str(error)) or type(error).__name__})"
                ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DownloadError(
                f"{endpoint} answered for {repository.repo} with something that its own client cannot read "
                f"({type(error).__name__}: {printable(str(error), 100)})"
            ) from error
    raise AssertionError("the last attempt returns or raises")


def _access(token: str | None) -> str:
    return "this token may see" if token else "is public (for a private one set HF_TOKEN)"


def _denied(repository: Repository, endpoint: str, token: str | None) -> str:
    do = "with the account of this token" if token else "with an account, and set HF_TOKEN to a token of it"
    return f"access to {repository.repo} is granted by its publisher: ask for it at {endpoint}/{repository.repo} {do}"


def _licence(info: ModelInfo) -> str:
    card: Any = info.card_data
    named = card.get("license") if card is not None else None
    tags = [tag.partition(":")[2] for tag in info.tags or () if isinstance(tag, str) and tag.startswith("license:")]
    return printable(named) or printable(next(iter(tags), ""))


def _cached_repository(repository: Repository) -> Path:
    return cache_directory() / f"models--{repository.repo.replace('/', '--')}"


def _cached_file(folder: Path, revision: str, path: str, digest: str | None) -> Path | None:
    """The file in the cache: by its digest, which names it there, or in the snapshot where there are no links."""
    for candidate in ([folder / "blobs" / digest] if digest else []) + [folder / "snapshots" / revision / path]:
        if candidate.is_file() and _is_inside(candidate, folder):
            return candidate
    return None


def _list_cache(repository: Repository) -> Listing | None:
    """The snapshot of the cache that the revision means there, if there is one with all that the model needs."""
    folder = _cached_repository(repository)
    revision = repository.revision or "main"
    try:
        commit = revision if _COMMIT.fullmatch(revision) else (folder / "refs" / revision).read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    snapshot = folder / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        return None
    found = {path.relative_to(snapshot).as_posix(): path for path in sorted(snapshot.rglob("*")) if path.is_file()}
    selection = select(list(found), repository.quant, f"{repository.repo} in the cache")
    files = []
    for path, name in stored_names(selection, repository.repo).items():
        if not _is_inside(found[path], folder):
            raise DownloadError(f"{found[path]} leads out of the cache; refused")
        blob = Path(os.path.realpath(found[path])).name  # a blob is named by its digest
        facts = (_digest(blob, _SHA256), _digest(blob, _COMMIT), found[path])
        files.append(RemoteFile(name, "", found[path].stat().st_size, *facts))
    return Listing(selection, files, str(repository), commit)


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _digest(value: object, pattern: re.Pattern[str]) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _size(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
