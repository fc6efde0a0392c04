"""Freehold beside other engines on the same weights, alternating in one run on one machine.

usage: compare.py --model MODEL.gguf [--freehold-model DIR] [--llama-python P] [--vllm-python P --vllm-model DIR]
                  [--rounds 5] [--prefill 512,2048] [--prefill-at 4096] [--decode-at 512,4096] [--batch 8] [--swap]
                  [--precision exact,fast] ...

Engines are asked in turn, A B C A B C ..., so a noisy neighbour hits all of them; reported are medians, and ratios of
Freehold, in each of the precisions asked for, to the others. Each engine is loaded once in a process of its own; with
--swap, for models of which memory holds only one, it is loaded anew in every round and stopped before the next engine
starts. Environments: see docs/performance.md.
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
        self.label, self.kind, self.loads, self.rates, self.peak = label, kind, [], {}, 0
        self.command = [python, str(WORKERS), kind, model, str(n_threads)]
        self.env = {**os.environ, **(env or {})}
        self.process = None

    def start(self):
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env=self.env,
            )  # fmt: skip
            self.loads.append(self.read()["load_seconds"])
            for warm_up in ({"prefill": 64, "depth": 0}, {"decode": 2, "depth": 8, "batch": 1}):
                self.ask(warm_up)

    def stop(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.label} stopped; run its command by hand to see why: {' '.join(self.command)}")
        return json.loads(line)

    def ask(self, request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self.read()

    def measure(self, name, request, n_tokens):
        answer = self.ask(request)
        if answer.get("seconds"):
            self.rates.setdefault(name, []).append(n_tokens / answer["seconds"])
        self.peak = max(self.peak, answer["peak_bytes"])


def workloads(a):
    """(name, request, tokens) in the order they are asked."""
    for n in a.prefill:
        yield f"prefill {n}", {"prefill": n, "depth": 0}, n
    for depth in a.prefill_at:
        yield f"prefill {a.prefill[0]} @{depth}", {"prefill": a.prefill[0], "depth": depth}, a.prefill[0]
    for depth in a.decode_at:
        yield f"decode @{depth}", {"decode": a.decode, "depth": depth, "batch": 1}, a.decode
    for batch in a.batch:
        request = {"decode": a.decode, "depth": a.decode_at[0], "batch": batch}
        yield f"decode {batch} x @{a.decode_at[0]}", request, a.decode * batch


def report(engines, names, a, load):
    print(f"{platform.processor() or platform.machine()}, {a.threads} threads, load at start {load:.2f}, "
          f"{time.strftime('%Y-%m-%d %H:%M')}, tokens/s, medians of {a.rounds}")  # fmt: skip
    ours = [e for e in engines if e.kind.startswith("freehold")]
    pairs = [(e, peer) for e in ours for peer in engines if peer not in ours]
    heads = [f"{e.label} : {peer.label}" for e, peer in pairs]
    print(f"{'':<20}" + "".join(f"{e.label:>12}" for e in engines) + "".join(f"{head:>23}" for head in heads))
    for name in names:
        medians = {e: statistics.median(e.rates[name]) if name in e.rates else None for e in engines}
        cells = "".join(f"{'-' if m is None else format(m, '.1f'):>12}" for m in medians.values())
        ratios = [medians[e] / medians[peer] if medians[peer] else None for e, peer in pairs]
        print(f"{name:<20}{cells}" + "".join(f"{'-' if r is None else format(r, '.2f') + 'x':>23}" for r in ratios))
    print(f"{'load, seconds':<20}" + "".join(f"{statistics.median(e.loads):>12.1f}" for e in engines))
    print(f"{'peak memory, GB':<20}" + "".join(f"{e.peak / 1e9:>12.2f}" for e in engines))


def numbers(text):
    return [int(n) for n in text.split(",") if n]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="GGUF file, for llama.cpp and, unless told otherwise, Freehold")
    parser.add_argument("--freehold-model")
    parser.add_argument("--freehold-python", default=sys.executable)
    parser.add_argument("--llama-python")
    parser.add_argument("--vllm-python")
    parser.add_argument("--vllm-model", help="directory of safetensors with the same weights")
    parser.add_argument("--isa", help="force Freehold's level")
    parser.add_argument("--precision", default="exact", help="Freehold's, or several with commas between them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prefill", type=numbers, default=[512])
    parser.add_argument("--prefill-at", type=numbers, default=[])
    parser.add_argument("--decode-at", type=numbers, default=[512])
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--batch", type=numbers, default=[])
    parser.add_argument("--swap", action="store_true")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a = parser.parse_args()

    isa = {"FREEHOLD_ISA": a.isa} if a.isa else {}
    engines = []
    for precision in a.precision.split(","):
        label = "freehold" if precision == "exact" else precision
        kind = f"freehold:{precision}"
        engines.append(Engine(label, a.freehold_python, kind, a.freehold_model or a.model, a.threads, isa))
    if a.llama_python:
        engines.append(Engine("llama.cpp", a.llama_python, "llama.cpp", a.model, a.threads))
    if a.vllm_python:
        engines.append(Engine("vllm", a.vllm_python, "vllm", a.vllm_model, a.threads))
    load = os.getloadavg()[0]
    asked = list(workloads(a))
    for index in range(a.rounds):
        for e in engines:
            e.start()
            for name, request, n_tokens in asked:
                e.measure(name, request, n_tokens)
            print(f"round {index + 1} of {a.rounds}: {e.label}", {k: round(v[-1], 1) for k, v in e.rates.items()},
                  file=sys.stderr, flush=True)  # fmt: skip
            if a.swap:
                e.stop()
    for e in engines:
        e.stop()
    report(engines, [name for name, _, _ in asked], a, load)


if __name__ == "__main__":
    main()
