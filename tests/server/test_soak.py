"""Many streams at once on a real model: everyone gets the answer they would get alone, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import freehold
from freehold.runtime import LocalModel
from freehold.server.openai_chat import ENDPOINTS
from served import served

N_STREAMS = 64
N_ROUNDS = 3  # bench/serving.py soak does twenty, and follows the memory
N_TOKENS = 12


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Iterator[LocalModel]:
    with freehold.load(smollm2_path) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def url(model: LocalModel) -> Iterator[str]:
    with served({"smollm2": model}, ENDPOINTS) as url:
        yield url


def prompt(number: int) -> str:
    return f"What is {number} plus {number % 7}? Answer in a sentence."


async def streamed(client: httpx.AsyncClient, number: int) -> str:
    """The text of one answer, which must come whole."""
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": prompt(number)}],
        "max_tokens": N_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    text, ended = "", False
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line:
                text += json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content") or ""
    assert ended, "the stream broke off"
    return text


async def at_once(url: str) -> list[str]:
    limits = httpx.Limits(max_connections=N_STREAMS)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        return await asyncio.gather(*(streamed(client, number) for number in range(N_STREAMS)))


def test_company_changes_no_answer(model: LocalModel, url: str) -> None:
    alone = [
        model.chat([{"role": "user", "content": prompt(number)}], max_tokens=N_TOKENS, temperature=0).text
        for number in range(N_STREAMS)
    ]
    assert len(set(alone)) > N_STREAMS // 4, "answers that are all the same would hide a mix-up"
    peaks = []
    for _ in range(N_ROUNDS):
        assert asyncio.run(at_once(url)) == alone
        gc.collect()
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[-1] - peaks[0] < 32 * 1024, f"the peak of memory grows from round to round: {peaks} KiB"
    stats = model.engine.stats
    assert (stats.n_running, stats.n_waiting) == (0, 0)
