"""The server's own description, held against the server: every operation fuzzed with what it says it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from freehold.server.endpoint import Endpoint
from freehold.server.endpoints import all_endpoints
from freehold.server.openapi import description, page
from scripted_model import HarmonyRoles, harmony, scripted
from served import served

ENDPOINTS = all_endpoints()
SAID = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Paris<|return|>"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A model that thinks, under a name that fuzzers are told of, and one that does not."""
    models = {"thinker": scripted(harmony(SAID), chat_format=HarmonyRoles, context=512), "plain": scripted("Paris")}
    with served(models, ENDPOINTS) as url:
        yield url


def operations() -> Any:
    """What there is to fuzz. Without the list of models nearly every request would be for one that is not there."""
    document = description(ENDPOINTS)
    for schema in document["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"enum": ["thinker", "plain", "missing"]}
    return schemathesis.openapi.from_dict(document)


OPERATIONS = operations()
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def name(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


def fuzz(endpoint: Endpoint, mode: GenerationMode, server: str, data: st.DataObject) -> None:
    operation = OPERATIONS[re.sub(r":\w+}", "}", endpoint.path)][endpoint.method]
    case = data.draw(operation.as_strategy(generation_mode=mode))
    response = case.call(base_url=server, timeout=20)
    case.validate_response(response, checks=CHECKS)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_request_breaks_the_server(endpoint: Endpoint, server: str, data: st.DataObject) -> None:
    fuzz(endpoint, GenerationMode.POSITIVE, server, data)


@pytest.mark.parametrize("endpoint", [endpoint for endpoint in ENDPOINTS if endpoint.body], ids=name)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_wrong_request_breaks_the_server(endpoint: Endpoint, server: str, data: st.DataObject) -> None:
    fuzz(endpoint, GenerationMode.NEGATIVE, server, data)


def test_the_document_and_the_page_name_every_route(server: str) -> None:
    document = httpx.get(f"{server}/openapi.json").json()
    shown = httpx.get(f"{server}/docs").text
    for endpoint in ENDPOINTS:
        path = re.sub(r":\w+}", "}", endpoint.path)
        assert endpoint.method.lower() in document["paths"][path]
        assert f"<code>{path}</code>" in shown
    assert "http://" not in shown.replace("http://127.0.0.1", "")
    assert "https://" not in shown
    assert "<script" not in shown


def test_every_reference_of_the_document_is_there() -> None:
    document = description(ENDPOINTS)
    for name in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)):
        assert name in document["components"]["schemas"]


def test_text_of_the_code_is_shown_as_text() -> None:
    document = description(ENDPOINTS)
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["summary"] = "<script>alert(1)</script>"
    assert "<script>" not in page(document)
