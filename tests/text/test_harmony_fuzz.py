"""The harmony parser on any output at all, and on well-formed output beside the library's own."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.text.harmony_parser import BETWEEN_MESSAGES, HarmonyParser
from freehold.text.tokenizer import Tokenizer
from harmony_answers import BYTES, read, said, tools
from harmony_library import Judge
from scripted_model import EOS, HARMONY, MESSAGE, VOCAB, harmony

any_id = st.one_of(
    st.sampled_from([*harmony("<|start|><|end|><|message|><|channel|><|constrain|><|return|><|call|>"), EOS]),
    st.integers(-2, VOCAB + 2),
)
snippets = st.sampled_from(
    [
        *("assistant", "analysis", "final", "commentary", " to=functions.f", " to=", "json", " ", "é", "[", '{"a":1}'),
        *(
            "<|start|>",
            "<|end|>",
            "<|message|>",
            "<|channel|>",
            "<|constrain|>",
            "<|return|>",
            "<|call|>",
            "<|im_end|>",
        ),
        *("functions.f", "python", "user", "word"),
    ]
)


HEADER_WORDS = ("assistant", "analysis", "final", "commentary", "to=", "json", "functions.f", "python", "user")


@given(st.one_of(st.lists(any_id, max_size=300), st.lists(snippets, max_size=40).map(lambda s: harmony("".join(s)))))
@settings(max_examples=300, deadline=None)
def test_no_output_raises_or_splits(ids: list[int]) -> None:
    answer = read(ids, "f")
    parser = HarmonyParser(BYTES, HARMONY, tools("f"))
    early = [event for id in ids for event in parser.push(id)]
    assert answer.events[: len(early)] == early  # what was given out is never taken back
    assert all(event.text or event.call for event in answer.events)
    if not answer.events and MESSAGE not in ids:  # then nothing was there but the words of headers
        written = bytes(id if 0 <= id < 256 else ord(" ") for id in ids).decode(errors="replace").split()
        assert all(any(word.startswith(k) or k.startswith(word) for k in HEADER_WORDS) for word in written)


@given(st.lists(st.tuples(st.sampled_from(["analysis", "final", "commentary", "??", ""]), st.booleans()), max_size=6))
@settings(max_examples=100, deadline=None)
def test_every_body_comes_out_once_and_whole(messages: list[tuple[str, bool]]) -> None:
    """Whatever the header was, and whether the message was ended or run into by the next one."""
    output = ""
    for number, (channel, ended) in enumerate(messages):
        output += "<|start|>assistant" if number else ""
        output += f"<|channel|>{channel}<|message|>body {number}." + ("<|end|>" if ended else "")
    answer = said(output)
    for number, (channel, _) in enumerate(messages):
        where = answer.reasoning if channel == "analysis" else answer.text
        assert where.count(f"body {number}.") == 1


@given(st.binary(max_size=80))
@settings(max_examples=100, deadline=None)
def test_without_control_tokens_all_is_text(data: bytes) -> None:
    text = data.decode(errors="replace")
    answer = read(list(data), "f")
    if not text.lstrip().startswith("to="):
        assert (answer.text, answer.reasoning, answer.calls) == (text, "", [])


words = st.text(alphabet=st.characters(codec="utf-8"), max_size=12)
message = st.tuples(st.sampled_from(["analysis", "commentary", "final", "call", "call in role", "python"]), words)


def _written(kind: str, body: str, judge: Judge, special: dict[str, int]) -> list[int]:
    """One message as the model writes it, from the header after the role to before the end token."""
    heads = {
        "call": "<|channel|>commentary to=functions.f <|constrain|>json",
        "call in role": " to=functions.f<|channel|>commentary json",
        "python": "<|channel|>analysis to=python code",
    }
    return [*_marked(heads.get(kind, f"<|channel|>{kind}"), judge, special), special["message"], *judge.encode(body)]


def _marked(head: str, judge: Judge, special: dict[str, int]) -> list[int]:
    ids: list[int] = []
    for piece in head.replace("<|", "\0<|").replace("|>", "|>\0").split("\0"):
        name = piece.removeprefix("<|").removesuffix("|>")
        ids += [special[name]] if piece.startswith("<|") else judge.encode(piece)
    return ids


@given(messages=st.lists(message, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_well_formed_output_reads_as_the_library_reads_it(
    messages: list[tuple[str, str]], judge: Judge, harmony_tokenizer: Tokenizer
) -> None:
    special = {name.strip("<|>"): id for name, id in harmony_tokenizer.special_ids.items()}
    ids: list[int] = []
    for number, (kind, body) in enumerate(messages):
        ids += [special["start"], *judge.encode("assistant")] if number else []
        ids += _written(kind, body, judge, special)
        last = number == len(messages) - 1
        ids.append(special["call" if kind in ("call", "call in role", "python") else "return" if last else "end"])
    answer = read(ids, "f", tokenizer=harmony_tokenizer, parameters=None)
    theirs = [(m.channel, m.recipient, m.content_type, m.content[0].text) for m in judge.parse(ids)]
    expected: dict[str, list[str]] = {"analysis": [], "visible": []}
    for channel, recipient, _, body in theirs:
        if recipient is None and body:
            expected["analysis" if channel == "analysis" else "visible"].append(body)
    assert answer.reasoning == BETWEEN_MESSAGES.join(expected["analysis"])
    assert answer.text == BETWEEN_MESSAGES.join(expected["visible"])
    assert [(c.channel, c.recipient, c.content_type, arguments) for c, arguments in answer.calls] == [
        (channel, recipient, content_type.removeprefix("<|constrain|>"), body)
        for channel, recipient, content_type, body in theirs
        if recipient is not None
    ]
    assert answer.n_recoveries == 0
