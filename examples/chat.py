"""A conversation in a dozen lines: each question goes with all that was said before, which the prefix cache holds.

python examples/chat.py [MODEL]
"""

import sys

import freehold

QUESTIONS = ("What is the capital of France?", "Which river flows through it?")


def main(model_name: str = "smollm2") -> None:
    messages: list[freehold.Message] = []
    with freehold.load(model_name) as model:
        for question in QUESTIONS:
            messages.append(freehold.Message(role="user", content=question))
            reply = model.chat(messages, max_tokens=48)
            messages.append(freehold.Message(role="assistant", content=reply.text))
            print(f"{question}\n{reply.text}  ({reply.n_cached} of {reply.n_prompt} prompt tokens cached)\n")


if __name__ == "__main__":
    main(*sys.argv[1:2])
