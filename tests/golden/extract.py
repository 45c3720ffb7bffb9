"""Cuts a small golden file from an oracle: python -m tests.golden.extract FULL.npz SMALL.npz.

What the authors' code computed cannot be computed here, so arrays are left out, never changed: the
large outputs (``token_error`` stands for predictions and targets) and most of the large gradients
(each block keeps those of its norms, biases and attention projection).
"""

import sys

import numpy as np

LARGEST = 4096  # bytes of an output or gradient that is kept in any case
KEPT = (
    "grads/encoder.patch_embed.proj.weight",  # where both losses meet
    "grads/encoder.pos_embed_probs",
    "grads/encoder.get_token_probs.0.attn.qkv.weight",  # the fused layout
)


def extract(full: str, small: str) -> None:
    """Writes the arrays that are kept to ``small``."""
    with np.load(full) as file:
        arrays = {
            name: file[name]
            for name in file.files
            if not name.startswith(("output/", "grads/"))
            or file[name].nbytes <= LARGEST
            or name in KEPT
        }
    np.savez_compressed(small, **arrays)


if __name__ == "__main__":
    extract(sys.argv[1], sys.argv[2])
