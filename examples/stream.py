"""Print an answer as it is generated, stop when enough was said, and report the speed.

python examples/stream.py [PROMPT] [MODEL]
"""

import sys

import freehold

MAX_CHARS = 200


def main(prompt: str = "Tell me about the sea.", model_name: str = "smollm2") -> None:
    messages = [{"role": "user", "content": prompt}]
    with freehold.load(model_name) as model:
        shown = 0
        with model.chat(messages, stream=True, max_tokens=96, temperature=0.7, seed=1) as stream:
            for event in stream:
                print(event.text, end="", flush=True)
                shown += len(event.text)
                if shown >= MAX_CHARS:
                    stream.close()  # the model stops within one step
            reply = stream.reply()
    rate = f", {reply.n_generated / reply.decode_seconds:.0f} tokens/s" if reply.decode_seconds else ""
    print(f"\n({reply.finish_reason}: {reply.n_generated} tokens{rate})")


if __name__ == "__main__":
    main(*sys.argv[1:3])
