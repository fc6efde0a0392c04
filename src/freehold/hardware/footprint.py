"""Memory that Freehold takes beside weights and KV cache: predicted for people, bounded for budgets.

Owns the arithmetic of what one step allocates (csrc/program.cpp, `reserve`), of the program, the tokenizer, and of what
packing weights adds. Its constants are of Freehold, none is of a model; docs/planner.md says how they were measured.
Pure: reads no file; footprints.py makes a Footprint of a checkpoint. Bytes are resident ones.
"""

from __future__ import annotations

from dataclasses import dataclass

PROGRAM_BYTES = 50 * 10**6
"""Interpreter, libraries and our code: 48 to 50 MB on x86-64 Linux."""

STEP_TOKENS = 512
"""Most tokens of a step, as the engine takes them."""
MAX_SEQUENCES = 64
"""Sequences whose logits a step may make, as the engine takes them."""

PLAIN, CODED = 4.0, 2.875
"""Bytes per column of a product's input: as float32, and as codes of 16 bits with scales and sums per 32 and 16."""
_LANES = 4  # tokens of one expert are padded to so many
_WORKER_BYTES = 512 * 1024  # of a thread: decoded weights, scores, softmax states

ARENA_SHARE = 1 / 64
"""Of packed weights: what the ends of huge pages and of regions leave unused. 1.0 to 2.0 % measured."""

_ROOM = 32 * 10**6  # of a budget: imports of a server, what malloc keeps
_TEXT_ROOM = 1.3  # while a tokenizer is made it takes up to so many times what it keeps


@dataclass(frozen=True)
class Footprint:
    """What a model's shape says of its working memory. Of an unknown shape nothing: the program alone is counted.

    values: numbers in float32 that one token has in buffers at once. columns: most of a matrix that every token is
    multiplied with; column_bytes: of an input, for each. top_k, n_experts, pair_columns, pair_bytes: the same of routed
    experts, a row per token and expert. latent: size of the latent row (MLA). text_bytes: of the tokenizer.
    mapped_bytes: of the weights' file that are mapped at most while the last of them are packed.
    """

    values: int = 0
    columns: int = 0
    hidden: int = 0
    vocabulary: int = 0
    column_bytes: float = PLAIN + CODED
    top_k: int = 0
    n_experts: int = 0
    pair_columns: int = 0
    pair_bytes: float = PLAIN + CODED
    latent: int = 0
    text_bytes: float = 0
    mapped_bytes: float = 0

    def step_bytes(self, n_tokens: int, n_sequences: int, context: int, n_threads: int) -> float:
        """Of the largest step: `n_tokens`, logits of `n_sequences`, the last of which ends at position `context`."""
        pairs = n_tokens * self.top_k
        slots = pairs + (_LANES - 1) * min(pairs, self.n_experts)
        return (
            4 * n_tokens * self.values
            + n_tokens * self.columns * self.column_bytes
            + slots * self.pair_columns * self.pair_bytes
            + 4 * pairs * self.hidden
            + context * self.latent * (PLAIN + CODED)
            + 4 * (n_sequences + 2) * self.vocabulary  # and the sampler's two rows
            + n_threads * _WORKER_BYTES
        )

    def working_bytes(self, context: int, n_sequences: int, n_threads: int) -> float:
        """Expected beside weights and KV cache while `n_sequences` fill `context` tokens each."""
        n_tokens = min(STEP_TOKENS, context * n_sequences)
        return PROGRAM_BYTES + self.text_bytes + self.step_bytes(n_tokens, n_sequences, context, n_threads)

    def reserve_bytes(self, weight_bytes: float, context: int, n_threads: int) -> int:
        """The most that a budget must leave beside weights and KV cache, whatever is asked of the engine."""
        step = self.step_bytes(STEP_TOKENS, MAX_SEQUENCES, context, n_threads)
        return int(PROGRAM_BYTES + _TEXT_ROOM * self.text_bytes + step + ARENA_SHARE * weight_bytes + _ROOM)

    def peak_bytes(
        self, weight_bytes: float, kv_bytes: float, context: int, n_sequences: int, n_threads: int
    ) -> tuple[float, float]:
        """Most memory resident, once packed weights are kept in a file, and at the first start, which packs them."""
        later = weight_bytes + kv_bytes + self.working_bytes(context, n_sequences, n_threads)
        packed = (1 + ARENA_SHARE) * weight_bytes
        packing = packed + self.mapped_bytes + PROGRAM_BYTES + self.text_bytes
        return later, max(later + ARENA_SHARE * weight_bytes, packing)
