"""Stop strings: the cut of the text into pieces must never matter."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import RequestError
from freehold.text.stream import MAX_STOP_CHARS, MAX_STOPS, StopStrings

TEXT = st.text(alphabet="ab\n", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=6), max_size=4)


def whole(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The definition, over the whole text: cut before the stop string completed first, the longest of several."""
    for end in range(1, len(text) + 1):
        found = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(found)], True
    return text, False


def pieces(text: str, cuts: Sequence[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


@settings(max_examples=400, deadline=None)
@given(TEXT, STOPS, st.lists(st.integers(0, 1000), max_size=8))
def test_any_cut_gives_what_the_whole_gives(text: str, stops: list[str], cuts: list[int]) -> None:
    stream = StopStrings(stops)
    out = ""
    hit = False
    for piece in pieces(text, cuts):
        shown, hit = stream.push(piece)
        out += shown
    assert (out + stream.flush(), hit) == whole(text, stops)


@settings(max_examples=200, deadline=None)
@given(TEXT, STOPS)
def test_holds_back_only_what_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    stream = StopStrings(stops)
    out, hit = stream.push(text)
    held = "" if hit else text[len(out) :]
    assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_nothing_follows_a_hit() -> None:
    stream = StopStrings(["END"])
    assert stream.push("one EN") == ("one ", False)
    assert stream.push("D two") == ("", True)
    assert stream.push("three") == ("", True)
    assert stream.flush() == ""


def test_a_false_start_is_given_back() -> None:
    stream = StopStrings(["END"])
    assert stream.push("EN") == ("", False)
    assert stream.push("T") == ("ENT", False)
    assert stream.push("E") == ("", False)
    assert stream.flush() == "E"


def test_without_stops_text_passes() -> None:
    assert StopStrings([]).push("anything") == ("anything", False)


@pytest.mark.parametrize("stops", [[""], ["a" * (MAX_STOP_CHARS + 1)], ["a"] * (MAX_STOPS + 1), [3]])
def test_refused(stops: list[str]) -> None:
    with pytest.raises(RequestError, match="stop"):
        StopStrings(stops)
