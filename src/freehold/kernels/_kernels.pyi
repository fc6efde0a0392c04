from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_F32 = npt.NDArray[np.float32]
_I32 = npt.NDArray[np.int32]

KV_BLOCK: int
PANEL: int
MAX_HEAD_DIM: int
MAX_LATENT: int
MAX_GROUP: int

class Pool:
    def __init__(self, n_threads: int) -> None: ...
    @property
    def n_threads(self) -> int: ...

class Arena:
    def __init__(self, expected: int = 0) -> None: ...

class Packed:
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def format(self) -> int: ...
    @property
    def data(self) -> npt.NDArray[np.uint8]: ...

class Program:
    def __init__(self, pool: Pool, isa: str, bytes: bool = False) -> None: ...
    def buffer(self, width: int, /) -> int: ...
    def rope(self, inverse_frequencies: Sequence[float], scale: float, interleaved: bool, /) -> int: ...
    def embed(self, table: Packed, out: int, /) -> None: ...
    def embed_rows(self, rows: npt.NDArray[np.uint8], out: int, /) -> None: ...
    def linear(
        self,
        x: int,
        norm: _F32 | None,
        eps: float,
        weights: Sequence[Packed],
        biases: Sequence[_F32 | None],
        outs: Sequence[int],
        add: bool,
        /,
    ) -> None: ...
    def gated(self, x: int, norm: _F32 | None, eps: float, gate: Packed, up: Packed, out: int, /) -> None: ...
    def attention(
        self,
        q: int,
        k: int,
        v: int,
        out: int,
        kv_offset: int,
        n_heads: int,
        n_kv_heads: int,
        k_dim: int,
        v_dim: int,
        window: int,
        rope: int,
        scale: float,
        sinks: _F32 | None,
        q_norm: _F32 | None,
        q_eps: float,
        k_norm: _F32 | None,
        k_eps: float,
        /,
    ) -> None: ...
    def attention_of_latents(
        self,
        q: int,
        latent: int,
        out: int,
        kv_offset: int,
        norm: _F32 | None,
        eps: float,
        keys: Sequence[Packed],
        queries: Sequence[Packed],
        values: Sequence[Packed],
        rope: int,
        scale: float,
        /,
    ) -> None: ...
    def route(
        self,
        scores: int,
        n_experts: int,
        k: int,
        sigmoid: bool,
        normalised: bool,
        scale: float,
        bias: _F32 | None,
        n_groups: int,
        n_kept_groups: int,
        group_best: int,
        /,
    ) -> int: ...
    def experts(
        self,
        x: int,
        norm: _F32 | None,
        eps: float,
        routing: int,
        gates: Sequence[Packed],
        ups: Sequence[Packed],
        gate_bias: _F32 | None,
        up_bias: _F32 | None,
        clamp: tuple[float, float] | None,
        out: int,
        /,
    ) -> None: ...
    def combine(self, x: int, routing: int, weights: Sequence[Packed], bias: _F32 | None, out: int, /) -> None: ...
    def head(self, x: int, norm: _F32 | None, eps: float, weight: Packed, /) -> None: ...
    def run(
        self,
        tokens: _I32,
        positions: _I32,
        seq_starts: _I32,
        block_table: _I32,
        logit_rows: _I32,
        prompts: _I32 | None,
        kv: npt.NDArray[np.uint16],
        logits: _F32,
        /,
    ) -> bool: ...
    def interrupt(self) -> None: ...

def levels() -> list[tuple[str, bool, str]]: ...
def reserve(arena: Arena, format: int, n_rows: int, n_cols: int) -> Packed: ...
def packed_bytes(format: int, n_rows: int, n_cols: int) -> int: ...
def wrap(data: npt.NDArray[np.uint8], format: int, n_rows: int, n_cols: int) -> Packed: ...
def fill(
    pool: Pool,
    packed: Sequence[Packed],
    sources: Sequence[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]],
    isa: str,
    first: int = 0,
    last: int = ...,
) -> int: ...
def unpack_row(packed: Packed, isa: str, row: int, out: _F32, /) -> None: ...
def measure_bandwidth(pool: Pool, bytes: int) -> float: ...
