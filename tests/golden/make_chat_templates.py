"""Golden prompts of published chat templates, by Jinja itself and the `tokenizers` library: no code of ours takes part.

The environment is the one that Hugging Face renders templates in: blocks trimmed, `tojson` without HTML escapes, keys
in their order. transformers itself is not used.

usage: make_chat_templates.py DIRECTORY OUT.json; DIRECTORY/<family>/ holds tokenizer.json and tokenizer_config.json
"""

import json
import sys
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of <b>one</b> city & its \"surroundings\"",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wie ist das Wetter in 北京?"}]


def loop(arguments, content):
    """A call, its result and the answer, then another question."""
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    turn = {"role": "assistant", "content": content, "reasoning_content": "Look it up.", "tool_calls": [call]}
    return [
        *ASK,
        turn,
        {"role": "tool", "content": "Regen, 12 °C", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "Es regnet.", "reasoning_content": "Rain."},
        {"role": "user", "content": "Und morgen?"},
    ]


OBJECT, TEXT = {"city": "北京"}, '{"city": "北京"}'
CASES = [
    ("qwen3", ASK, {}),
    ("qwen3", ASK, {"enable_thinking": False}),
    ("qwen3", loop(OBJECT, ""), {"tools": [WEATHER]}),
    ("qwen3", loop(OBJECT, "")[:4], {"tools": [WEATHER]}),
    ("qwen2_5", ASK[1:], {}),
    ("qwen2_5", loop(OBJECT, "Moment."), {"tools": [WEATHER]}),
    ("deepseek_v3", ASK, {}),
    ("deepseek_v3", loop(TEXT, None), {}),
    ("llama3_1", ASK, {}),
]


def refuse(message):
    raise ValueError(message)


environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
environment.globals["raise_exception"] = refuse
directory, out = Path(sys.argv[1]), Path(sys.argv[2])
golden = []
for family, messages, options in CASES:
    config = json.loads((directory / family / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = {key: config.get(key) for key in ("bos_token", "eos_token")}
    texts = {key: value["content"] if isinstance(value, dict) else value for key, value in names.items()}
    template = environment.from_string(config["chat_template"])
    prompt = template.render({"tools": None, **texts, **options}, messages=messages, add_generation_prompt=True)
    tokenizer = Tokenizer.from_file(str(directory / family / "tokenizer.json"))
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    said = [{**message, "content": message["content"] or ""} for message in messages]
    golden.append({"family": family, "messages": said, "options": options, "prompt": prompt, "ids": ids})
lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in golden)
out.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
