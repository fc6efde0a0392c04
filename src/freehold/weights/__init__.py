"""Model files: readers of GGUF and safetensors, and the checkpoint that both are read through.

Everything in a file is checked before it is believed. Tensors stay in the bytes of the file (`formats.QTensor`);
arranging them for the kernels is not done here.
"""

from freehold.weights.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
