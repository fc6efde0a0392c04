"""LocalModel, Stream and Reply around a scripted model: text in and out, stopping, cancelling, threads, logits."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from freehold import Message
from freehold.errors import ContextError, EngineError, RequestError, ResourceError, UnsupportedError
from scripted_model import ASSISTANT, BOS, EOS, SPLIT, USER, VOCAB, scripted

HELLO = [{"role": "user", "content": "Hello"}]


def text_of(stream: Any) -> str:
    return "".join(event.text for event in stream)


def test_chat_answers_and_counts() -> None:
    with scripted("Paris") as model:
        reply = model.chat(HELLO)
    assert (reply.text, reply.finish_reason) == ("Paris", "stop")
    assert (reply.n_prompt, reply.n_generated) == (1 + 1 + 5 + 1, 6)
    assert min(reply.prefill_seconds, reply.decode_seconds) > 0
    assert reply.logprobs is None


def test_messages_are_mappings_or_objects() -> None:
    with scripted(lambda prompt: prompt[::-1].encode()) as model:
        assert (
            model.chat([Message(role="user", content="abc")]).text
            == model.chat([{"role": "user", "content": "abc"}]).text
        )


def test_stream_and_reply_are_the_same_text() -> None:
    with scripted("Grüße, 世界 👋🏽!") as model:
        with model.chat(HELLO, stream=True) as stream:
            pieces = [event.text for event in stream]
            reply = stream.reply()
        assert "".join(pieces) == reply.text == model.chat(HELLO).text == "Grüße, 世界 👋🏽!"
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(b"a\xffb", "a\ufffdb"), (b"end\xe2\x82", "end\ufffd"), ([SPLIT, 0xAC, 65], "€A")],
)
def test_every_byte_becomes_text(answer: Any, expected: Any) -> None:
    with scripted(answer) as model:
        assert model.chat(HELLO).text == expected
        assert text_of(model.chat(HELLO, stream=True)) == expected


def test_stop_string_across_tokens_is_not_shown() -> None:
    with scripted("one, two, three") as model:
        reply = model.chat(HELLO, stop=["two", "zzz"])
        assert (reply.text, reply.finish_reason) == ("one, ", "stop")
        assert model.chat(HELLO, stop="two").text == "one, "
        assert model.chat(HELLO, stop="three!").text == "one, two, three"  # held back, then delivered


def test_max_tokens_and_full_context_end_with_length() -> None:
    with scripted("x" * 500, context=64) as model:
        assert model.chat(HELLO, max_tokens=3).text == "xxx"
        reply = model.chat(HELLO)
        assert reply.finish_reason == "length"
        assert reply.n_prompt + reply.n_generated == 64


def test_prompt_beyond_the_context_is_refused_with_both_numbers() -> None:
    with (
        scripted(context=64) as model,
        pytest.raises(ContextError, match=r"the prompt is 103 tokens; the context is 64"),
    ):
        model.chat([{"role": "user", "content": "x" * 100}])


def test_generate_takes_text_or_ids() -> None:
    with scripted() as model:
        assert model.generate("ab", max_tokens=3).text == "cde"
        assert model.generate([97, 98], max_tokens=3).text == "cde"
        assert text_of(model.generate("ab", max_tokens=3, stream=True)) == "cde"


@pytest.mark.parametrize("ids", [[], [-1], [VOCAB], ["a"], [1.5], [[1]]])
def test_bad_ids_are_refused(ids: Any) -> None:
    with scripted() as model:
        for call in (model.generate, model.logits, model.detokenize):
            with pytest.raises(RequestError):
                call(ids)


def test_bad_options_are_refused() -> None:
    with scripted() as model:
        chat: Any = model.chat  # what a caller without a type checker may write
        with pytest.raises(RequestError, match="did you mean 'temperature'"):
            chat(HELLO, temprature=1.0)
        with pytest.raises(RequestError, match="temperature"):
            model.chat(HELLO, temperature=-1.0)
        with pytest.raises(RequestError, match="temperature"):
            chat(HELLO, temperature="hot")
        with pytest.raises(RequestError, match="max_tokens"):
            model.chat(HELLO, max_tokens=0)
        with pytest.raises(RequestError, match="stop"):
            model.chat(HELLO, stop=[""])
        with pytest.raises(RequestError, match="messages is empty"):
            model.chat([])


def test_no_template_no_chat() -> None:
    with scripted(template=False) as model:
        with pytest.raises(UnsupportedError, match="generate"):
            model.chat(HELLO)
        assert model.generate("a", max_tokens=1).text == "b"


def test_logprobs_carry_true_bytes() -> None:
    with scripted([SPLIT, 0xAC]) as model:
        reply = model.chat(HELLO, n_logprobs=2)
    assert reply.logprobs
    assert [entry.raw for entry in reply.logprobs] == [b"\xe2\x82", b"\xac"], "of visible text, without its end"
    assert reply.logprobs[0].logprob == pytest.approx(reply.logprobs[0].top[0][2])
    assert reply.logprobs[0].top[1][:2] == (ord("?"), b"?")


@pytest.mark.parametrize("how", ["close", "leave the block", "drop"])
def test_a_stream_nobody_reads_stops_generating(how: str) -> None:
    with scripted("x" * 10_000, context=4096) as model:
        stream = model.chat(HELLO, stream=True)
        next(stream)
        if how == "close":
            stream.close()
            assert stream.reply().finish_reason == "cancelled"
        elif how == "leave the block":
            with stream:
                pass
        del stream
        assert model.chat([{"role": "user", "content": "b"}], max_tokens=1).text == "x"
        for _ in range(1000):
            if model.engine.stats.n_running == 0:
                break
            threading.Event().wait(0.005)
        assert model.engine.stats.n_running == 0
        assert model.script.steps < 9000


def test_a_closed_stream_keeps_what_had_arrived() -> None:
    with scripted("abcdef") as model:
        stream = model.chat(HELLO, stream=True, stop="bcX")
        assert next(stream).text == "a"
        stream.close()
        stream.close()
        reply = stream.reply()
        assert reply.finish_reason == "cancelled"
        assert reply.text.startswith("a")


def test_many_threads_get_their_own_answers() -> None:
    with scripted(lambda prompt: prompt[::-1].encode()) as model:
        answers: dict[str, str] = {}

        def ask(word: str) -> None:
            answers[word] = model.chat([{"role": "user", "content": word}]).text

        words = [f"word{i}" for i in range(12)]
        threads = [threading.Thread(target=ask, args=(word,)) for word in words]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {word: word[::-1] for word in words}


def test_logits_of_every_position_while_an_answer_runs() -> None:
    with scripted("x" * 200) as model:
        stream = model.chat(HELLO, stream=True)
        next(stream)
        ids = list(range(100))
        logits = model.logits(ids)
        assert logits.shape == (100, VOCAB)
        assert logits.dtype == np.float32
        assert logits.argmax(axis=1).tolist() == [i + 1 for i in ids]
        assert stream.reply().text == "x" * 200
        assert not model.script.overlapped


def test_logit_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [BOS, USER, *b"some prompt", ASSISTANT, *b"Par"]
    with scripted("Paris") as model:
        whole = model.logits(ids)
        monkeypatch.setattr("freehold.exclusive.LOGIT_CHUNK_BYTES", 4 * VOCAB * 5)
        steps = model.script.steps
        assert np.array_equal(model.logits(ids), whole)
        assert model.script.steps - steps == -(-len(ids) // 5)


def test_logits_too_big_for_memory_or_context_are_refused() -> None:
    with scripted(budget=200_000) as model:
        with pytest.raises(ResourceError, match="iter_logits"):
            model.logits([1] * 300)
        assert sum(len(rows) for rows in model.iter_logits([1] * 300)) == 300
    with scripted() as model, pytest.raises(ContextError):
        model.logits([1] * 1000)


def test_closing_ends_running_answers_and_refuses_new_ones() -> None:
    closed = []
    model = scripted("x" * 200, on_close=lambda: closed.append(1))
    stream = model.chat(HELLO, stream=True)
    next(stream)
    model.close()
    model.close()
    assert closed == [1]
    assert stream.reply().finish_reason == "cancelled"
    with pytest.raises(EngineError):
        model.chat(HELLO)


def test_a_failing_model_reaches_the_reader() -> None:
    with scripted() as model:
        model.script.answer = lambda prompt: b"x" * (1 // 0)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            model.chat(HELLO)


def test_end_of_turn_tokens_are_not_text() -> None:
    with scripted([65, EOS, 66]) as model:
        reply = model.chat(HELLO)
        assert (reply.text, reply.n_generated) == ("A", 2)
