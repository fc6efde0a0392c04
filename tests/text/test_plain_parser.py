"""Answers that are text and nothing else, and what of them counts as visible."""

from __future__ import annotations

from freehold.text.plain_parser import PlainParser
from harmony_answers import BYTES
from scripted_model import EOS, SPLIT, USER


def test_every_token_with_a_text_is_visible_text() -> None:
    parser = PlainParser(BYTES)
    text, seen = "", []
    for id in [ord("a"), SPLIT, 0xAC, EOS, USER]:
        text += "".join(event.text for event in parser.push(id))
        seen.append(parser.in_text)
    assert text + "".join(event.text for event in parser.finish()) == "a\N{EURO SIGN}<|im_end|>"
    assert seen == [True, True, True, True, False]  # the last has no text
