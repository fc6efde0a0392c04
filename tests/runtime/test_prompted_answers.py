"""An answer is bound and read for the prompt that it answers: the end of a prompt may open a thought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from freehold.text.answer import AnswerParser
from freehold.text.answer_style import AnswerStyle, Thinking
from freehold.text.chat import Message
from freehold.text.request import ChatRequest, Grammar
from freehold.text.tagged_parser import TaggedParser
from freehold.text.template_grammar import tagged_grammar
from freehold.text.tokenizer import Tokenizer
from scripted_model import ByteTokenizer, RoleTemplate, scripted

STYLE = AnswerStyle(Thinking())
BYTES = cast(Tokenizer, ByteTokenizer())


class Thinker(RoleTemplate):
    """Its prompts open a thought; scripts begin with what the prompt says of it."""

    def render(self, messages: Sequence[Message], **options: Any) -> list[int]:
        return [*super().render(messages, **options), *b"<think>\n"]

    def parser(self, *, tools: Any = None, prompt: Sequence[int] = ()) -> AnswerParser:
        return TaggedParser(BYTES, STYLE, tools, prompt)

    def grammar(self, request: ChatRequest, prompt: Sequence[int] = ()) -> str | None:
        return tagged_grammar(request, STYLE, BYTES, prompt)


def test_an_answer_that_begins_in_the_middle_of_a_thought() -> None:
    with scripted("<think>\nHm.\n</think>\n\nParis", chat_format=Thinker) as model:
        reply = model.chat([Message("user", "Capital?")])
    assert (reply.reasoning, reply.text) == ("Hm.", "Paris")


def test_the_answer_is_bound_and_the_thought_is_not() -> None:
    yes = Grammar("regex", "yes|no")
    with scripted("<think>\nyes? no!\n</think>\n\nyes", chat_format=Thinker) as model:
        stream = model.prepare(ChatRequest((Message("user", "?"),), answer=yes)).start()
        reply = stream.reply()
    assert (reply.reasoning, reply.text) == ("yes? no!", "yes")
