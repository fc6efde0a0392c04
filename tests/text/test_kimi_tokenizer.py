"""Kimi's tokenizer out of ranks: the ids of tiktoken, whatever the ranks; hostile files are refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import ModelFileError, UnsupportedError
from freehold.text.bytelevel import cut_named
from freehold.text.tiktoken_ranks import MAX_BYTES
from freehold.text.tokenizer import Tokenizer, load_tokenizer
from kimi_files import CONTROLS, N_CONTROLS, WORDS, made_up_ranks, tokenizer_config, write_ranks

PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""The publisher's own."""
LETTERS = "abcdehlorst ABHW'0123.,!\n\t你好世界中文北京語のカ々ーéñΣß½²१\u0301\u200d👋🏽"
TEXT = st.lists(
    st.text(max_size=10)
    | st.text(LETTERS, max_size=16)
    | st.sampled_from([*WORDS, *CONTROLS.values(), "<|im_", "end|>", "getUserName", "中文English混合", "DON'T"]),
    max_size=8,
).map("".join)


def made(directory: Path, ranks: dict[bytes, int], **changes: Any) -> Tokenizer:
    write_ranks(directory / "tiktoken.model", ranks)
    config = tokenizer_config(len(ranks), **changes)
    model = {"vocab_size": len(ranks) + N_CONTROLS, "bos_token_id": len(ranks), "eos_token_id": len(ranks) + 1}
    path = directory / "tiktoken.model"
    return load_tokenizer(None, None, model, tokenizer_config=config, tiktoken_model=path)


def oracle(ranks: dict[bytes, int]) -> Any:
    tiktoken = pytest.importorskip("tiktoken")
    n = len(ranks)
    controls = {CONTROLS.get(at, f"<|reserved_token_{n + at}|>"): n + at for at in range(N_CONTROLS)}
    return tiktoken.Encoding("kimi", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=controls)


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return made(tmp_path_factory.mktemp("kimi"), made_up_ranks())


@pytest.fixture(scope="module")
def tiktoken_kimi() -> Any:
    return oracle(made_up_ranks())


def test_the_cut_is_the_publisher_s() -> None:
    assert cut_named("kimi-k2").stages == (PATTERN,)


@settings(max_examples=500, deadline=None)
@given(TEXT)
def test_ids_are_those_of_tiktoken(kimi: Tokenizer, tiktoken_kimi: Any, text: str) -> None:
    assert kimi.encode(text) == tiktoken_kimi.encode(text, disallowed_special=())
    assert kimi.encode(text, special=True) == tiktoken_kimi.encode(text, allowed_special="all")
    assert kimi.decode(kimi.encode(text)) == text


@pytest.mark.parametrize("seed", range(12))
def test_ids_are_those_of_tiktoken_however_the_ranks_came_about(tmp_path: Path, seed: int) -> None:
    """Ranks in no order that training could give: tokens that no two others make, or only ones of a higher rank."""
    chance = random.Random(seed)
    words = {"".join(chance.choices("ab" if seed % 2 else "abc北", k=chance.randint(2, 7))) for _ in range(60)}
    tokens = [bytes([byte]) for byte in range(256)] + sorted({word.encode() for word in words})
    chance.shuffle(tokens)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    ours, theirs = made(tmp_path, ranks), oracle(ranks)
    for _ in range(200):
        text = "".join(chance.choices("aab" if seed % 2 else "abc北", k=chance.randint(1, 30)))
        assert ours.encode(text) == theirs.encode(text)


def test_control_tokens_are_as_configured(kimi: Tokenizer) -> None:
    n = len(made_up_ranks())
    for at, text in CONTROLS.items():
        assert kimi.encode(text, special=True) == [n + at]
        assert kimi.special_ids[text] == n + at
        assert n + at not in kimi.encode(text)
    assert kimi.token_bytes(n + 5) == b"<|reserved_token_%d|>" % (n + 5)
    assert (kimi.vocab_size, kimi.bos_id, kimi.eos_id) == (n + N_CONTROLS, n, n + 1)
    assert kimi.eos_ids == {n + 1}
    assert not kimi.add_bos


def test_ids_beyond_the_model_s_get_no_text(tmp_path: Path) -> None:
    ranks = made_up_ranks()
    write_ranks(tmp_path / "tiktoken.model", ranks)
    config = tokenizer_config(len(ranks), added_tokens_decoder={})
    one = {"vocab_size": len(ranks) + 1}
    kimi = load_tokenizer(None, None, one, tokenizer_config=config, tiktoken_model=tmp_path / "tiktoken.model")
    assert list(kimi.special_ids.values()) == [len(ranks)]


BYTES = b"".join(line + b"\n" for line in (b"AA== 0", b"AQ== 1"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no token for the byte 0"),
        (BYTES, "no token for the byte 2"),
        (b"AA== 0\nAQ== 2\n", "2 lines and none of rank 1"),
        (b"AA== 0\nAQ== 0\n", "2 lines and none of rank 1"),
        (b"AA== 0\nAA== 1\n", r"the token b'\\x00' twice"),
        (b"AA== 0\n\nAQ== 1\n", "line 2 is b''"),
        (b"A 0\n", "line 1 is"),
        (b"AA=A 0\n", "line 1 is"),
        (b"AA== -1\n", "line 1 is"),
        (b"AA==\n", "line 1 is"),
        (b"AA== 0 0\n", "line 1 is"),
        (b"AA== 99999999999999999999\n", "line 1 is"),
        (b"\xff\xfe" * 40, "line 1 is"),
        (b"QUFB" * 400 + b" 0\n", "base64 of 1 to 512 bytes"),
        (b" " * (MAX_BYTES + 1), "is larger than"),
    ],
)
def test_hostile_ranks(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "tiktoken.model"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=said):
        load_tokenizer(None, None, {}, tokenizer_config=tokenizer_config(256), tiktoken_model=path)


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        ([], "added_tokens_decoder is a list"),
        ({"5": {"content": "x"}}, "'x' has the id '5'; expected .* to"),
        ({"99999": {"content": "x"}}, "'x' has the id '99999'"),
        ({"-1": {"content": "x"}}, "'x' has the id '-1'"),
        ({"0NEXT": {"content": "x"}}, "'x' has the id '0"),
        ({"NEXT": {"content": ""}}, "an object with its content"),
        ({"NEXT": "x"}, "an object with its content"),
        ({"NEXT": {"content": "hello"}}, "'hello', as another one is"),
        ({"NEXT": {"content": "xy"}, "LAST": {"content": "xy"}}, "'xy', as another one is"),
        ({"NEXT": {"content": "x" * 999}}, "is too long"),
    ],
)
def test_hostile_control_tokens(tmp_path: Path, decoder: Any, said: str) -> None:
    n = len(made_up_ranks())
    if isinstance(decoder, dict):
        decoder = {
            {"NEXT": str(n), "0NEXT": f"0{n}", "LAST": str(n + 9)}.get(key, key): value
            for key, value in decoder.items()
        }
    with pytest.raises(ModelFileError, match=said):
        made(tmp_path, made_up_ranks(), added_tokens_decoder=decoder)


@pytest.mark.parametrize("auto_map", [None, {}, [], {"AutoTokenizer": ["tokenization_other.Tok", None]}])
def test_the_ranks_of_others_are_refused(tmp_path: Path, auto_map: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"publisher's code .* Kimi's is known\. Get the model with a tokenizer"):
        made(tmp_path, made_up_ranks(), auto_map=auto_map)


def test_absent_ranks(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        load_tokenizer(
            None, None, {}, tokenizer_config=tokenizer_config(256), tiktoken_model=tmp_path / "tiktoken.model"
        )
