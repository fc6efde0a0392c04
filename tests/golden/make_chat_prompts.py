"""Golden prompts of the published templates in templates/, rendered by transformers itself: no code of ours takes part.

The templates are test data, as the publishers of the models ship them: Qwen's, Mistral's and SmolLM3's (in Unsloth's
edition) under Apache-2.0, DeepSeek's and GLM's under MIT, Kimi's under its modified MIT licence. Most come from models/templates of llama.cpp (MIT) as in PyPI's llama-cpp-python 0.3.36; where that
has editions of its own, as of deepseek_v3_1, qwq, kimi_k2 and kimi_k2_thinking, the publishers' were put back.

usage: make_chat_prompts.py > chat_prompts.json, with transformers 5.24.0; no weights, no tokenizers
"""

import json
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

DEEPSEEK = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
MISTRAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = {"bos_token": "", "eos_token": "<|im_end|>"}
KIMI = {"bos_token": "[BOS]", "eos_token": "[EOS]"}
GLM = {"bos_token": "", "eos_token": "<|endoftext|>"}

SHAPE = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": 'Weather of <b>one</b> city & its "surroundings"', "parameters": SHAPE}
WEATHER = {"type": "function", "function": FUNCTION}
PLAIN = {**WEATHER, "function": {**FUNCTION, "description": "Weather of <b>one</b> city"}}
SYSTEM = {"role": "system", "content": "Be brief."}
ASK = [SYSTEM, {"role": "user", "content": "Wie ist das Wetter in 北京?"}]
OBJECT, TEXT = {"city": "北京", "days": 2}, '{"city": "北京", "days": 2}'


def loop(arguments, content="", id="call_1", thinks=True, n_calls=1):
    """A call or two, their results, the answer, then another question."""
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    ids = [id if i == 0 else f"{id[:-1]}{i + 1}" for i in range(n_calls)]
    turn = {"role": "assistant", "content": content, "tool_calls": [{"id": each, **call} for each in ids]}
    answer = {"role": "assistant", "content": "Es regnet."}
    if thinks:
        turn["reasoning_content"], answer["reasoning_content"] = "Look it up.", "Rain."
    results = [{"role": "tool", "content": "Regen, 12 °C", "tool_call_id": each} for each in ids]
    return [*ASK, turn, *results, answer, {"role": "user", "content": "Und morgen?"}]


def turns(messages):
    """Up to the results, which the model answers next."""
    return [message for message in messages[:-2]]


def deeply_sorted(value):
    """As Kimi's tokenizer class hands tools to its template."""
    if isinstance(value, dict):
        return {key: deeply_sorted(item) for key, item in sorted(value.items())}
    return [deeply_sorted(item) for item in value] if isinstance(value, list) else value


TOOLS = {"tools": [WEATHER]}
DATE = {"date_string": "26 Jul 2024"}
QWEN, TWO = loop(OBJECT), loop(OBJECT, n_calls=2)
KIMI_LOOP = loop(TEXT, "Moment.", id="functions.get_weather:0")
MISTRAL_LOOP = loop(OBJECT, id="abcdefgh1", thinks=False, n_calls=2)
V31 = loop(TEXT, None, n_calls=2)
CASES = [
    ("qwen2_5", CHATML, ASK[1:], {}),
    ("qwen2_5", CHATML, loop(OBJECT, "Moment.", thinks=False, n_calls=2), TOOLS),
    ("qwen3", CHATML, ASK, {}),
    ("qwen3", CHATML, ASK, {"enable_thinking": False}),
    ("qwen3", CHATML, TWO, TOOLS),
    ("qwen3", CHATML, turns(TWO), TOOLS),
    ("qwen3_coder", CHATML, ASK, {}),
    ("qwen3_coder", CHATML, ASK[1:], TOOLS),
    ("qwen3_coder", CHATML, loop(OBJECT, "Moment.", n_calls=2), TOOLS),
    ("qwq", CHATML, ASK, {}),
    ("qwq", CHATML, QWEN, TOOLS),
    ("deepseek_v3_1", DEEPSEEK, ASK, {}),
    ("deepseek_v3_1", DEEPSEEK, ASK, {"thinking": True}),
    ("deepseek_v3_1", DEEPSEEK, V31, {}),
    ("deepseek_v3_1", DEEPSEEK, turns(V31), {}),
    ("r1_distill", DEEPSEEK, ASK[1:], {}),
    ("r1_distill", DEEPSEEK, loop(TEXT, None, n_calls=2), {}),
    ("glm4_6", GLM, ASK, {}),
    ("glm4_6", GLM, ASK, {"enable_thinking": False}),
    ("glm4_6", GLM, TWO, TOOLS),
    ("glm4_6", GLM, turns(TWO), TOOLS),
    ("kimi_k2", KIMI, ASK[1:], {}),
    ("kimi_k2", KIMI, KIMI_LOOP, TOOLS),
    ("kimi_k2_thinking", KIMI, ASK, {}),
    ("kimi_k2_thinking", KIMI, KIMI_LOOP, TOOLS),
    ("kimi_k2_thinking", KIMI, turns(KIMI_LOOP), TOOLS),
    ("smollm3", CHATML, ASK, {}),
    ("smollm3", CHATML, ASK[1:], {"enable_thinking": False}),
    ("mistral_nemo", MISTRAL, ASK, {}),
    ("mistral_nemo", MISTRAL, MISTRAL_LOOP, {"tools": [PLAIN]}),
]

golden = []
for name, special, messages, options in CASES:
    source = (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    given = {key: value for key, value in options.items() if key != "tools"}
    tools = options.get("tools")
    if tools and name.startswith("kimi"):
        tools = deeply_sorted(tools)
    prompts, _ = render_jinja_template(
        [messages], tools=tools, chat_template=source, add_generation_prompt=True, **given, **special
    )
    said = [{**message, "content": message["content"] or ""} for message in messages]
    case = {"template": name, "special": special, "messages": said, "options": options, "prompt": prompts[0]}
    golden.append(json.dumps(case, ensure_ascii=False))
print("[\n" + ",\n".join(golden) + "\n]")
