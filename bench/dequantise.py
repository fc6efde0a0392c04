"""Write a GGUF llama checkpoint as bf16 safetensors in Hugging Face's layout, for engines that read no GGUF.

usage: dequantise.py MODEL.gguf OUT_DIR
"""

import json
import sys
from pathlib import Path

import numpy as np

from freehold.weights import open_checkpoint


def to_bf16(values):
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def main():
    source, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    with open_checkpoint(source) as checkpoint:
        config = {key: value for key, value in checkpoint.config.items() if value is not None}
        config |= {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "hidden_act": "silu"}
        (out / "config.json").write_text(json.dumps(config, indent=1))
        header, offset, arrays = {}, 0, []
        for name in checkpoint.names:
            values = to_bf16(checkpoint.get(name).to_float32())
            end = offset + values.nbytes
            header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [offset, end]}
            arrays.append(values)
            offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (out / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in arrays:
            file.write(values.tobytes())


if __name__ == "__main__":
    main()
