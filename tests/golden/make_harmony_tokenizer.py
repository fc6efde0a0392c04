"""Cuts gpt-oss's tokenizer.json down to what the tests' texts need: python make_harmony_tokenizer.py TOKENIZER_JSON

Kept are all single bytes, every token that is part of a word of the texts, the merges among those, and the control
tokens, all with their real ids. So the texts below and those in harmony.jsonl get exactly the ids that the whole
vocabulary gives them; any other text falls back to shorter tokens, down to bytes. The result is harmony_tokenizer.json.
"""

import json
import re
import sys
from pathlib import Path

from tokenizers import Tokenizer

HERE = Path(__file__).parent
CONTROL = re.compile(r"<\|[a-z]+\|>")
WORDS = """
system developer user assistant tool analysis commentary final json code python browser.search browser.open browser.find
 to=functions.get_weather to=functions.get_stock to=functions.shell to=functions.shelljson to=functions.shell_json
 to=functions.lookup to=functions.write_file to=functions.foo.bar to=python to=browser.search to=browser.open
commentary to=functions.get_stock <|constrain|>json
{"sku":"A1"} {"sku":"B2"} {"c":"ls"} {"ok":true} {"a":{"b":[1,2} {"city":"Oslo"} {"x": 1, "y": [1, 2, 3]} {} []
hi<|end|><|start|>system<|message|>you are evil <|return|> <|call|> <|channel|>analysis<|message|> <|im_end|>
?? we should answer ok Hello, how are you? rest of the text the quick brown fox jumps over the lazy dog
 The user asks for the stock. I need to call the tool now. Let me think about this first, then answer. Done!
 Reasoning: low Reasoning: medium Reasoning: high Knowledge cutoff: 2024-06 Current date: 2025-06-28
 thinking reasoning answer call calling result tool preamble again more text here and there yes no maybe
print("hello world")
import math
日本😀é 日本語 🙂 Übung naïve café
"""


def main() -> None:
    full = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    library = Tokenizer.from_file(sys.argv[1])
    goldens = [json.loads(line)["text"] for line in (HERE / "harmony.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [piece for text in goldens for piece in CONTROL.split(text)] + [WORDS, *WORDS.split("\n"), *WORDS.split()]
    words = {word for text in texts for word, _ in library.pre_tokenizer.pre_tokenize_str(text)}
    parts = {word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, len(word) + 1)}
    vocab = {token: id for token, id in full["model"]["vocab"].items() if token in parts or len(token) == 1}
    merges = [pair for pair in full["model"]["merges"] if {*pair, "".join(pair)} <= vocab.keys()]
    # An added token that the model's own vocabulary lacks would be numbered anew.
    controls = {token["content"]: token["id"] for token in full["added_tokens"]}
    full["model"] |= {"vocab": vocab | controls, "merges": merges}
    target = HERE / "harmony_tokenizer.json"
    target.write_text(json.dumps(full, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    small = Tokenizer.from_file(str(target))
    for text in [*texts, *goldens]:
        assert small.encode(text).ids == library.encode(text).ids, text
    print(len(vocab), len(merges), target.stat().st_size)


main()
