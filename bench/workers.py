"""One engine under measurement: reads requests on stdin, one JSON object a line, answers with seconds.

usage: workers.py freehold|llama.cpp|vllm MODEL [N_THREADS]

Runs inside the environment of the engine it measures, so it imports nothing else and nothing of the others.
Requests: {"prefill": n} is the time of a prompt of n random tokens up to its first logits; {"decode": n, "depth": d}
the time of n single-token steps after d tokens. Answers are {"seconds": s}; the first line out is {"load_seconds": s}.
"""

import json
import os
import random
import sys
import time


class Freehold:
    def __init__(self, path, n_threads):
        import numpy as np

        from freehold.core import KV_BLOCK, Batch
        from freehold.models import load_model
        from freehold.weights import open_checkpoint

        self.np, self.batch_type = np, Batch
        with open_checkpoint(path) as checkpoint:
            self.model = load_model(checkpoint, n_threads=n_threads)
        self.vocab = self.model.vocab_size
        self.kv = self.model.new_kv(8192 // KV_BLOCK)
        self.table = np.arange(8192 // KV_BLOCK, dtype=np.int32)[None]

    def step(self, ids, start):
        np, n = self.np, len(ids)
        batch = self.batch_type(
            np.array(ids, np.int32),
            np.arange(start, start + n, dtype=np.int32),
            np.array([0, n], np.int32),
            self.table,
            np.array([n - 1], np.int32),
        )
        self.model.forward(batch, self.kv)

    def prefill(self, ids):
        start = time.perf_counter()
        for at in range(0, len(ids), 512):
            self.step(ids[at : at + 512], at)
        return time.perf_counter() - start

    def decode(self, ids, depth, n):
        self.prefill(ids[:depth])
        start = time.perf_counter()
        for i in range(n):
            self.step(ids[depth + i : depth + i + 1], depth + i)
        return time.perf_counter() - start


class LlamaCpp:
    def __init__(self, path, n_threads):
        from llama_cpp import Llama

        self.llama = Llama(
            path, n_ctx=8192, n_batch=512, n_ubatch=512, n_threads=n_threads, n_threads_batch=n_threads,
            flash_attn=True, verbose=False,
        )  # fmt: skip
        self.vocab = self.llama.n_vocab()

    def prefill(self, ids):
        self.llama.reset()
        start = time.perf_counter()
        self.llama.eval(ids)
        return time.perf_counter() - start

    def decode(self, ids, depth, n):
        self.prefill(ids[:depth])
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
            path, dtype="bfloat16", enable_prefix_caching=False, max_model_len=8192, skip_tokenizer_init=True,
            disable_log_stats=True,
        )  # fmt: skip
        self.vocab = self.llm.llm_engine.model_config.get_vocab_size()

    def answer(self, ids, n):
        params = self.params(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        self.llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
        return time.perf_counter() - start

    def prefill(self, ids):
        return self.answer(ids, 1)

    def decode(self, ids, depth, n):
        return self.answer(ids[:depth], n + 1) - self.answer(ids[:depth], 1)


def main():
    kind, path = sys.argv[1:3]
    n_threads = int(sys.argv[3]) if len(sys.argv) > 3 else len(os.sched_getaffinity(0))
    answers = os.fdopen(os.dup(1), "w")  # engines may write to stdout; answers must not mix with that
    os.dup2(2, 1)
    start = time.perf_counter()
    engine = {"freehold": Freehold, "llama.cpp": LlamaCpp, "vllm": VLLM}[kind](path, n_threads)
    print(json.dumps({"load_seconds": time.perf_counter() - start}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        needed = request.get("prefill", 0) or request["depth"] + request["decode"]
        ids = [random.randrange(1000, engine.vocab) for _ in range(needed)]
        if "prefill" in request:
            seconds = engine.prefill(ids)
        else:
            seconds = engine.decode(ids, request["depth"], request["decode"])
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
