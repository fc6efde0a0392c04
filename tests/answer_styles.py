"""Models that chat through templates of their own: small templates that write thoughts and calls as the families do,
a tokenizer whose marks are control tokens or spelled out, and what an answer adds up to.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from freehold.text.answer import AnswerParser, Event
from freehold.text.templates import ChatTemplate
from freehold.text.tokenizer import Tokenizer, load_tokenizer
from tiny_vocabulary import gguf_metadata

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: tuple[dict[str, Any], ...] = (
    {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
)
_LIST = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
_TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
_ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n"
_SWITCH = "{% if enable_thinking is defined and enable_thinking is false %}"
_EACH = "{% for call in m.tool_calls or [] %}"


def _deepseek(words: str) -> str:
    return f"<\uff5c{words.replace(' ', chr(0x2581))}\uff5c>"


HERMES = (
    _LIST
    + _TURN
    + "{{ m.content }}"
    + _EACH
    + '\n<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}" + _ASK + "{% endif %}"
)
QWEN3 = HERMES.replace(
    "{{ m.content }}",
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}",
).removesuffix("{% endif %}") + (_SWITCH + "<think>\n\n</think>\n\n{% endif %}{% endif %}")
R1 = HERMES.removesuffix("{% endif %}") + "<think>\n{% endif %}{# drops what '</think>' ends #}"
CODER = (
    _LIST
    + _TURN
    + "{{ m.content }}"
    + _EACH
    + "\n<tool_call>\n<function={{ call.function.name }}>\n{% for k, v in call.function.arguments | items %}"
    "<parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}" + _ASK + "{% endif %}"
)
GLM = (
    _LIST + _TURN + "{% set content = m.content %}{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% elif m.role == 'assistant' %}<think></think>{% endif %}{{ '\\n' + content if content else '' }}"
    + _EACH
    + "\n<tool_call>{{ call.function.name }}\n{% for k, v in call.function.arguments | items %}"
    "<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}{% endfor %}"
    + _ASK
    + _SWITCH
    + "<think></think>{% endif %}{% endif %}"
)
KIMI = (
    _LIST
    + _TURN
    + "{{ m.content }}{% if m.tool_calls %}<|tool_calls_section_begin|>"
    + _EACH
    + "<|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>{{ call.function.arguments | tojson }}"
    "<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>{% endif %}{{ m.tool_call_id }}<|im_end|>{% endfor %}"
    + _ASK
    + "{% endif %}"
)
_DEEPSEEK_CALL = (
    _deepseek("tool call begin")
    + "{before}{{{{ call.function.name }}}}{between}{{{{ call.function.arguments }}}}{behind}"
    + _deepseek("tool call end")
)
_DEEPSEEK = (
    _LIST
    + _TURN
    + "{% if m.content is none %}"
    + _deepseek("tool calls begin")
    + _EACH
    + "%s{% endfor %}"
    + _deepseek("tool calls end")
    + "{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    + _ASK
)
DEEPSEEK_V3 = (
    _DEEPSEEK.replace(
        "%s",
        _DEEPSEEK_CALL.format(
            before=f"function{_deepseek('tool sep')}",
            between="{{ '\n```json\n' + ",
            behind="+ '\n```' }}",
        ).replace("+ {{ call.function.arguments }}+", "+ call.function.arguments +"),
    )
    + "{% endif %}"
)
DEEPSEEK_V31 = (
    _DEEPSEEK.replace(
        "%s",
        _DEEPSEEK_CALL.format(before="", between=_deepseek("tool sep"), behind="").replace(
            "{{ call.function.arguments }}", "{{ '' + call.function.arguments }}"
        ),
    )
    + "{% if thinking is defined and thinking %}<think>{% else %}<\uff5cAssistant\uff5c></think>{% endif %}{% endif %}"
)
LLAMA = (
    "{% if tools %}Environment: ipython\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    + _LIST
    + "{% endif %}"
    + _TURN
    + "{{ m.content }}"
    + _EACH
    + '{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}{% endfor %}<|im_end|>'
    "{% endfor %}" + _ASK + "{% endif %}"
)
TEMPLATES = {
    "hermes": HERMES,
    "qwen3": QWEN3,
    "r1": R1,
    "qwen3_coder": CODER,
    "glm": GLM,
    "kimi": KIMI,
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v3_1": DEEPSEEK_V31,
    "llama": LLAMA,
}
MARKS = (
    *("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<|python_tag|>"),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
    "<|tool_call_argument_begin|>",
    *map(_deepseek, ("tool calls begin", "tool calls end", "tool call begin", "tool call end", "tool sep")),
)


@cache
def tokenizer(*, spelled: bool = False) -> Tokenizer:
    """Real BPE, with every mark as a control token; `spelled`: with none."""
    tags = ("<think>", "</think>")
    plain = gguf_metadata()
    tokens, types = list(plain["tokenizer.ggml.tokens"]), list(plain["tokenizer.ggml.token_type"])
    if spelled:
        types = [1 if token in tags else kind for token, kind in zip(tokens, types, strict=True)]
    else:
        tokens, types = [*tokens, *MARKS], [*types, *(4 for _ in MARKS)]
    return load_tokenizer(None, gguf_metadata(tokens=tokens, token_type=types), {})


@cache
def template(name: str, *, spelled: bool = False) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name], tokenizer(spelled=spelled))


@dataclass
class Answer:
    """What the events of one answer add up to."""

    text: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    n_recoveries: int = 0
    n_reasoning: int = 0

    @property
    def all_text(self) -> str:
        return "\0".join([self.text, self.reasoning, *("\0".join(call) for call in self.calls)])


def summed(parser: AnswerParser, ids: Sequence[int]) -> Answer:
    events = [event for id in ids for event in parser.push(id)] + list(parser.finish())
    return added_up(events, parser)


def added_up(events: Collection[Event], parser: AnswerParser) -> Answer:
    answer = Answer(n_recoveries=parser.n_recoveries, n_reasoning=parser.n_reasoning)
    for event in events:
        assert event.text or event.call
        if event.kind == "text":
            answer.text += event.text
        elif event.kind == "reasoning":
            answer.reasoning += event.text
        else:
            if event.call is not None:
                assert event.index == len(answer.calls)
                answer.calls.append([event.call.name, ""])
            answer.calls[event.index][1] += event.text
    return answer


def read(
    name: str, text: str, *, prompt: str = "", tools: Any = TOOLS, spelled: bool = False, by_byte: bool = False
) -> Answer:
    """What an answer in the style of a template says. by_byte: no token is longer than a character."""
    marks = tokenizer(spelled=spelled)
    ids = [id for part in text for id in marks.encode(part)] if by_byte else marks.encode(text, special=True)
    return summed(template(name, spelled=spelled).parser(tools=tools, prompt=marks.encode(prompt, special=True)), ids)
