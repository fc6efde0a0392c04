"""OpenAI's Models on scripted models: lists, names with slashes and colons, and names that nobody has."""

from __future__ import annotations

import openai
import pytest

from openai_scripted import says, talking_models


def test_models_are_listed() -> None:
    with talking_models({"gpt-oss-20b": says("a"), "hf.co/Org/Name:Q4_1": says("b", context=512)}) as talker:
        models = list(talker.openai.models.list())
        raw = talker.http.get("/v1/models").json()
    assert [model.id for model in models] == ["gpt-oss-20b", "hf.co/Org/Name:Q4_1"]
    assert all(model.owned_by == "freehold" and model.created > 1_700_000_000 for model in models)
    assert raw["object"] == "list"
    assert [(model["context_length"], model["loaded"]) for model in raw["data"]] == [(256, True), (512, True)]


@pytest.mark.parametrize("name", ["hf.co/Org/Name:Q4_1", "HF.co/org/name:q4_1", "hf.co%2FOrg%2FName%3AQ4_1"])
def test_one_is_shown_by_any_of_its_names(name: str) -> None:
    with talking_models({"other": says("a"), "hf.co/Org/Name:Q4_1": says("b")}) as talker:
        response = talker.http.get(f"/v1/models/{name}")
    assert response.status_code == 200
    assert response.json()["id"] == "hf.co/Org/Name:Q4_1"
    assert response.json()["object"] == "model"


def test_an_unknown_one_is_not_found_and_the_nearest_named() -> None:
    with talking_models({"gpt-oss-20b": says("a")}) as talker:
        assert talker.openai.models.retrieve("GPT-OSS-20B").id == "gpt-oss-20b"
        with pytest.raises(openai.NotFoundError, match="did you mean 'gpt-oss-20b'"):
            talker.openai.models.retrieve("gpt-oss-2b")
        assert talker.http.get("/v1/models/../../etc/passwd").status_code == 404
