"""Measure servers that speak OpenAI's Chat Completions: throughput of concurrent streams, overhead, first byte, soak.

usage: serving.py throughput MODEL URL [URL ...] [--streams 1,8] [--tokens 128] [--rounds 5]
       serving.py overhead MODEL URL [--tokens 256] [--rounds 5]
       serving.py prefix MODEL URL [--prompt-tokens 2000] [--rounds 10]
       serving.py soak MODEL URL [--streams 64] [--tokens 24] [--rounds 20] [--pid SERVER]

`throughput` alternates between the servers round by round and reports medians; what each served counts by its own
usage. `overhead` alternates a stream over HTTP with the same generation by an engine in this process, which nobody
reads meanwhile; so run it against a server of the same machine and model: MODEL is then also what Freehold loads.
`soak` compares every answer with the one the prompt gets alone, and with --pid follows the server's memory. URL is like
http://127.0.0.1:8000. The client is one thread and no library, so that on a small machine it takes little from the
server.
"""

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

TOPICS = (
    "rivers", "bridges", "clocks", "gardens", "ships", "mountains", "printing", "glass", "bread", "maps", "wool",
    "lighthouses", "salt", "trains", "paper", "honey",
)  # fmt: skip


@dataclass
class Answer:
    """One streamed answer: its text, the seconds from the request to each piece, and the server's own counts."""

    text: str = ""
    at: list = field(default_factory=list)
    usage: dict = field(default_factory=dict)
    finish: str | None = None


def prompt(number):
    """A prompt that no other number has, and that a small model answers at length."""
    topic = TOPICS[number % len(TOPICS)]
    return f"Text {number}. Write a very long essay about {topic}, at least 600 words, and do not stop early."


async def ask(url, body):
    """Send one streaming request and read it to its end. Raises RuntimeError for anything but a whole stream."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**22)
    payload = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    # HTTP 1.0 has no chunks: the lines of the stream are the lines of the connection.
    head = f"POST /v1/chat/completions HTTP/1.0\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    answer, start = Answer(), time.perf_counter()
    writer.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
    status = await reader.readline()
    done = False
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            done = True
            break
        event = json.loads(line[6:])
        answer.usage = event.get("usage") or answer.usage
        for choice in event.get("choices", ()):
            answer.finish = choice.get("finish_reason") or answer.finish
            if text := choice["delta"].get("content"):
                answer.at.append(time.perf_counter() - start)
                answer.text += text
    rest = b"" if done else await reader.read()
    writer.close()
    if b" 200 " not in status or not done:
        raise RuntimeError(
            f"{url}: {status.decode().strip()} {rest[:300]!r}, the stream {'ended' if done else 'broke off'}"
        )
    return answer


def body(model, text, n_tokens):
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": n_tokens,
        "temperature": 0,
    }


async def at_once(url, model, prompts, n_tokens):
    """All prompts at the same time: the answers, and the seconds until the last one ended."""
    start = time.perf_counter()
    answers = await asyncio.gather(*(ask(url, body(model, text, n_tokens)) for text in prompts))
    return answers, time.perf_counter() - start


def throughput(args):
    rates = {(url, n): [] for url in args.url for n in args.streams}
    firsts = {key: [] for key in rates}
    fresh = iter(range(10**6))  # prompts never repeat, so that no cache helps
    for number in range(args.rounds + 1):
        for url, n in rates:
            prompts = [prompt(next(fresh)) for _ in range(n)]
            answers, seconds = asyncio.run(at_once(url, args.model, prompts, args.tokens))
            if number:  # the first round warms up
                rates[url, n].append(sum(a.usage["completion_tokens"] for a in answers) / seconds)
                firsts[url, n] += [a.at[0] for a in answers]
    for (url, n), measured in rates.items():
        spread = f"{min(measured):.1f} to {max(measured):.1f}"
        first = statistics.median(firsts[url, n]) * 1e3
        print(f"{url}  {n:3} at once  {statistics.median(measured):8.1f} tok/s ({spread})  first token {first:.0f} ms")
    base = {url: statistics.median(rates[url, args.streams[0]]) for url in args.url}
    for url in args.url:
        for n in args.streams[1:]:
            here = statistics.median(rates[url, n])
            print(f"{url}  {n} at once: {here / base[url]:.2f}x one", end="")
            print(*(f", {here / statistics.median(rates[u, n]):.2f}x {u}" for u in args.url if u != url))


def overhead(args):
    import freehold
    from freehold.text.chat import Message
    from freehold.text.request import ChatRequest

    outside, inside = [], []
    with freehold.load(args.model) as model:
        for number in range(args.rounds + 1):
            text = prompt(number)
            answer = asyncio.run(ask(args.url[0], body(args.model, text, args.tokens)))
            request = ChatRequest((Message("user", text),), max_tokens=args.tokens, sampling={"temperature": 0.0})
            stream = model.prepare(request).start()
            while not stream.has_ended:  # nobody reads meanwhile: this is the engine alone
                time.sleep(0.05)
            reply = stream.reply()
            assert reply.text == answer.text, "the server and this process disagree; are they the same model?"
            if number:
                # Pieces may hold several tokens; the first holds one.
                outside.append((answer.at[-1] - answer.at[0]) / (reply.n_generated - 1))
                inside.append(reply.decode_seconds / (reply.n_generated - 1))
    extra = sorted((a / b - 1) * 100 for a, b in zip(outside, inside, strict=True))
    http, engine = statistics.median(outside) * 1e3, statistics.median(inside) * 1e3
    print(f"per token: {http:.3f} ms over HTTP, {engine:.3f} ms in the engine alone")
    print(f"overhead {statistics.median(extra):.1f} % (pairs: {', '.join(f'{percent:.1f}' for percent in extra)})")


def prefix(args):
    text = " ".join(f"{TOPICS[i % len(TOPICS)]}" for i in range(args.prompt_tokens))
    firsts = []
    for number in range(args.rounds + 1):
        answer = asyncio.run(ask(args.url[0], body(args.model, f"{text}\nSay a word.", 8)))
        if number:
            firsts.append(answer.at[0] * 1e3)
    cached = answer.usage["prompt_tokens_details"]["cached_tokens"]
    print(f"{answer.usage['prompt_tokens']} prompt tokens, {cached} cached")
    print(f"first piece after {statistics.median(firsts):.1f} ms ({min(firsts):.1f} to {max(firsts):.1f})")


def resident(pid):
    """Bytes of anonymous memory of a process: what grows when something leaks."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def soak(args):
    n = args.streams[0]
    prompts = [prompt(i) for i in range(n)]
    alone = [asyncio.run(ask(args.url[0], body(args.model, text, args.tokens))).text for text in prompts]
    for number in range(args.rounds):
        answers, seconds = asyncio.run(at_once(args.url[0], args.model, prompts, args.tokens))
        wrong = [i for i, answer in enumerate(answers) if answer.text != alone[i]]
        total = sum(answer.usage["completion_tokens"] for answer in answers)
        memory = f", {resident(args.pid) / 1e6:.1f} MB" if args.pid else ""
        print(f"round {number + 1}: {len(wrong)} of {n} differ, {total / seconds:.0f} tok/s{memory}", flush=True)
        if wrong:
            raise SystemExit(f"prompt {wrong[0]}: {answers[wrong[0]].text!r} instead of {alone[wrong[0]]!r}")


MEASURES = {"throughput": throughput, "overhead": overhead, "prefix": prefix, "soak": soak}
ROUNDS = {"throughput": 5, "overhead": 5, "prefix": 10, "soak": 20}
TOKENS = {"throughput": 128, "overhead": 256, "prefix": 8, "soak": 24}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("model")
    parser.add_argument("url", nargs="+")
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--pid", type=int)
    args = parser.parse_args()
    args.streams = args.streams or ([64] if args.measure == "soak" else [1, 8])
    args.rounds = args.rounds or ROUNDS[args.measure]
    args.tokens = args.tokens or TOKENS[args.measure]
    MEASURES[args.measure](args)


if __name__ == "__main__":
    main()
