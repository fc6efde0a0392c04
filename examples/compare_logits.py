"""Compare Freehold's logits with another implementation's: mean KL divergence and how often the first choice agrees.

    python examples/compare_logits.py MODEL IDS.npy LOGITS.npy

IDS.npy holds token ids [n_tokens], LOGITS.npy what the other implementation computed, [n_tokens, vocab_size]. Without
LOGITS.npy, the other implementation is Freehold's own numpy reference.
"""

import sys

import numpy as np
import numpy.typing as npt

import freehold

Logits = npt.NDArray[np.float32]


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Log-probabilities of each row, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def main(model_name: str, ids_path: str, logits_path: str | None = None) -> None:
    ids = np.load(ids_path, allow_pickle=False).tolist()
    with freehold.load(model_name) as model:
        ours = model.logits(ids)
    if logits_path is not None:
        theirs: Logits = np.load(logits_path, allow_pickle=False)
    else:
        with freehold.load(model_name, precision="reference") as model:
            theirs = model.logits(ids)
    p, q = log_softmax(theirs), log_softmax(ours)
    divergence = (np.exp(p) * (p - q)).sum(axis=-1)
    agreement = (ours.argmax(axis=-1) == theirs.argmax(axis=-1)).mean()
    print(f"{len(ids)} positions: mean KL {divergence.mean():.2e} nats, worst {divergence.max():.2e}")
    print(f"first choice agrees at {agreement:.1%} of positions")


if __name__ == "__main__":
    main(*sys.argv[1:4])
