"""Freehold beside other engines on the same weights, alternating in one run on one machine.

usage: compare.py --model MODEL.gguf [--freehold-python P] [--llama-python P] [--vllm-python P --bf16-dir DIR]
                  [--rounds 5] [--prefill 512] [--depth 512] [--decode 64] [--threads N]

Every engine is loaded once in a process of its own and asked in turn, A B C A B C ..., so a noisy neighbour hits all of
them; reported are medians, and ratios of Freehold to each. Environments: see docs/performance.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

WORKERS = Path(__file__).with_name("workers.py")


class Engine:
    def __init__(self, label, python, kind, model, n_threads, env=None):
        self.label = label
        self.process = subprocess.Popen(
            [python, str(WORKERS), kind, model, str(n_threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        self.load_seconds = self.read()["load_seconds"]

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.label} stopped; run its command by hand to see why: {self.process.args}")
        return json.loads(line)

    def ask(self, **request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self.read()["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--bf16-dir")
    parser.add_argument("--freehold-python", default=sys.executable)
    parser.add_argument("--llama-python")
    parser.add_argument("--vllm-python")
    parser.add_argument("--isa", help="force Freehold's level")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--depth", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a = parser.parse_args()

    isa = {"FREEHOLD_ISA": a.isa} if a.isa else {}
    engines = [Engine("freehold", a.freehold_python, "freehold", a.model, a.threads, isa)]
    if a.llama_python:
        engines.append(Engine("llama.cpp", a.llama_python, "llama.cpp", a.model, a.threads))
    if a.vllm_python:
        engines.append(Engine("vllm", a.vllm_python, "vllm", a.bf16_dir, a.threads))
    load = os.getloadavg()[0]
    for engine in engines:  # warm up: code paths, caches, thread pools
        engine.ask(prefill=a.prefill)
        engine.ask(decode=8, depth=a.depth)
    prefill, decode = ({e.label: [] for e in engines} for _ in range(2))
    for _ in range(a.rounds):
        for e in engines:
            prefill[e.label].append(a.prefill / e.ask(prefill=a.prefill))
        for e in engines:
            decode[e.label].append(a.decode / e.ask(decode=a.decode, depth=a.depth))
    print(f"{platform.processor() or platform.machine()}, {a.threads} threads, load at start {load:.2f}, "
          f"{time.strftime('%Y-%m-%d %H:%M')}, medians of {a.rounds}")  # fmt: skip
    columns = f"{f'prefill {a.prefill}':>14}{f'decode @{a.depth}':>14}{'load':>8}"
    print(f"{'engine':<12}{columns}   ratios of freehold")
    ours = {name: statistics.median(table["freehold"]) for name, table in (("prefill", prefill), ("decode", decode))}
    for e in engines:
        p, d = statistics.median(prefill[e.label]), statistics.median(decode[e.label])
        print(f"{e.label:<12}{p:>10.0f} t/s{d:>10.1f} t/s{e.load_seconds:>7.1f}s   "
              f"{ours['prefill'] / p:.2f}x prefill, {ours['decode'] / d:.2f}x decode")  # fmt: skip
    for e in engines:
        e.process.stdin.close()
        e.process.wait()


if __name__ == "__main__":
    main()
