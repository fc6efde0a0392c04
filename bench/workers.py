"""One engine under measurement: reads requests on stdin, one JSON object a line, answers with seconds.

usage: workers.py freehold[:PRECISION]|llama.cpp|vllm MODEL [N_THREADS]

Runs inside the environment of the engine it measures, so it imports nothing else and nothing of the others.
Requests: {"prefill": n, "depth": d} is the time of n random tokens after d others, up to their last one's logits;
{"decode": n, "depth": d, "batch": b} the time of n steps of one token for each of b sequences of d tokens. Answers are
{"seconds": s, "peak_bytes": m}, s null where the engine's interface has no such thing; the first line out is
{"load_seconds": s}.
"""

import json
import os
import random
import resource
import sys
import time

CONTEXT = 8192


class Freehold:
    def __init__(self, path, n_threads, precision):
        import numpy as np

        from freehold.core import KV_BLOCK, Batch
        from freehold.models import load_model
        from freehold.weights import open_checkpoint

        self.np, self.batch_type = np, Batch
        with open_checkpoint(path) as checkpoint:
            self.model = load_model(checkpoint, precision=precision, n_threads=n_threads)
        self.vocab = self.model.vocab_size
        self.kv = self.model.new_kv(CONTEXT // KV_BLOCK)
        self.table = np.arange(CONTEXT // KV_BLOCK, dtype=np.int32)

    def step(self, ids, start, tables):
        """One step of len(ids) / len(tables) tokens of every sequence."""
        np, n = self.np, len(ids) // len(tables)
        batch = self.batch_type(
            np.array(ids, np.int32),
            np.tile(np.arange(start, start + n, dtype=np.int32), len(tables)),
            np.arange(0, len(ids) + 1, n, dtype=np.int32),
            np.stack(tables),
            np.arange(n - 1, len(ids), n, dtype=np.int32),
        )
        self.model.forward(batch, self.kv)

    def fill(self, ids, start, table):
        for at in range(0, len(ids), 512):
            self.step(ids[at : at + 512], start + at, [table])

    def prefill(self, ids, depth):
        self.fill(ids[:depth], 0, self.table)
        start = time.perf_counter()
        self.fill(ids[depth:], depth, self.table)
        return time.perf_counter() - start

    def decode(self, ids, depth, n, batch):
        tables = self.np.split(self.table[: len(self.table) // batch * batch], batch)
        for table in tables:
            self.fill(ids[:depth], 0, table)
        start = time.perf_counter()
        for i in range(n):
            self.step(ids[depth + i * batch : depth + (i + 1) * batch], depth + i, tables)
        return time.perf_counter() - start


class LlamaCpp:
    def __init__(self, path, n_threads):
        from llama_cpp import Llama

        self.llama = Llama(
            path, n_ctx=CONTEXT, n_batch=512, n_ubatch=512, n_threads=n_threads, n_threads_batch=n_threads,
            flash_attn=True, verbose=False,
        )  # fmt: skip
        self.vocab = self.llama.n_vocab()

    def prefill(self, ids, depth):
        self.llama.reset()
        if depth:
            self.llama.eval(ids[:depth])
        start = time.perf_counter()
        self.llama.eval(ids[depth:])
        return time.perf_counter() - start

    def decode(self, ids, depth, n, batch):
        if batch > 1:
            return None
        self.prefill(ids[:depth], 0)
        start = time.perf_counter()
        for i in range(n):
            self.llama.eval(ids[depth + i : depth + i + 1])
        return time.perf_counter() - start


class VLLM:
    def __init__(self, path, n_threads):
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{n_threads - 1}")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from vllm import LLM, SamplingParams

        self.params = SamplingParams
        self.llm = LLM(
            path, dtype="bfloat16", enable_prefix_caching=False, max_model_len=CONTEXT, skip_tokenizer_init=True,
            disable_log_stats=True,
        )  # fmt: skip
        self.vocab = self.llm.llm_engine.model_config.get_vocab_size()

    def answer(self, prompts, n):
        params = self.params(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return time.perf_counter() - start

    def prefill(self, ids, depth):
        return self.answer([ids], 1) - (self.answer([ids[:depth]], 1) if depth else 0)

    def decode(self, ids, depth, n, batch):
        prompts = [ids[i : depth + i] for i in range(batch)]
        return self.answer(prompts, n + 1) - self.answer(prompts, 1)


def main():
    kind, path = sys.argv[1:3]
    n_threads = int(sys.argv[3]) if len(sys.argv) > 3 else len(os.sched_getaffinity(0))
    answers = os.fdopen(os.dup(1), "w")  # engines may write to stdout; answers must not mix with that
    os.dup2(2, 1)
    start = time.perf_counter()
    kind, _, precision = kind.partition(":")
    if kind == "freehold":
        engine = Freehold(path, n_threads, precision or "exact")
    else:
        engine = {"llama.cpp": LlamaCpp, "vllm": VLLM}[kind](path, n_threads)
    print(json.dumps({"load_seconds": time.perf_counter() - start}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        depth, batch = request["depth"], request.get("batch", 1)
        n = request.get("prefill") or request["decode"] * batch
        ids = [random.randrange(1000, engine.vocab) for _ in range(depth + n)]
        if "prefill" in request:
            seconds = engine.prefill(ids, depth)
        else:
            seconds = engine.decode(ids, depth, request["decode"], batch)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), file=answers, flush=True)


if __name__ == "__main__":
    main()
