"""ModelScope: what a repository holds, by its HTTP API.

Owns the requests of that API that a pull needs: the list of files with sizes and SHA-256, a file, the licence. For
those whom Hugging Face is closed to. MODELSCOPE_DOMAIN names another host, MODELSCOPE_API_TOKEN gives access to what is
not public.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote, urlencode

from freehold.errors import DownloadError
from freehold.hub.listing import Listing, printable, stored_names
from freehold.hub.names import Repository
from freehold.hub.remote import RemoteFile
from freehold.hub.selection import select
from freehold.hub.web import WebClient, WebError, user_endpoint

ENDPOINT = "https://www.modelscope.cn"
DEFAULT_REVISION = "master"

_SHA256 = re.compile(r"[0-9a-f]{64}")


def list_model(repository: Repository) -> Listing:
    """The files of `repository` that a model needs. Raises DownloadError; RequestError for a missing quantisation."""
    endpoint = user_endpoint("MODELSCOPE_DOMAIN", ENDPOINT)
    token = os.environ.get("MODELSCOPE_API_TOKEN", "").strip()
    headers = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
    denied = f"set MODELSCOPE_API_TOKEN to a token that may read {repository.repo}"
    client = WebClient(endpoint, headers, denied)
    revision = repository.revision or DEFAULT_REVISION
    base = f"{endpoint}/api/v1/models/{quote(repository.repo)}/repo"
    try:
        answer = client.read_json(f"{base}/files?{urlencode({'Revision': revision, 'Recursive': 'true'})}")
    except WebError as error:
        if error.status == 404:
            raise DownloadError(f"{endpoint} has no repository {repository.repo} with a revision {revision}") from error
        raise
    entries = _entries(answer, f"{endpoint}, asked for {repository.repo} at {revision},")
    selection = select(list(entries), repository.quant, repository.repo)
    files = []
    for path, name in stored_names(selection, repository.repo).items():
        size, sha256 = entries[path].get("Size"), str(entries[path].get("Sha256", "")).lower()
        url = f"{base}?{urlencode({'Revision': revision, 'FilePath': path})}"
        known = sha256 if _SHA256.fullmatch(sha256) else None
        files.append(RemoteFile(name, url, size if type(size) is int and size >= 0 else None, known))
    return Listing(selection, files, str(repository), revision, _licence(client, endpoint, repository), client)


def _entries(answer: Any, where: str) -> dict[str, dict[str, Any]]:
    """Path -> what the API says of the file; folders left out."""
    if not isinstance(answer, dict) or answer.get("Code") not in (200, None):
        message = printable(answer.get("Message")) if isinstance(answer, dict) else ""
        raise DownloadError(f"{where} answered: {message or 'something that is not its API'}")
    data = answer.get("Data")
    found = data.get("Files") if isinstance(data, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DownloadError(f"{where} listed no files")
    return {str(entry.get("Path")): entry for entry in found if entry.get("Type") != "tree"}


def _licence(client: WebClient, endpoint: str, repository: Repository) -> str:
    """The publisher's word for the licence; empty if the API does not give it, which is no reason to stop."""
    try:
        data = client.read_json(f"{endpoint}/api/v1/models/{quote(repository.repo)}").get("Data")
        return printable(data.get("License"))
    except (WebError, AttributeError):
        return ""
