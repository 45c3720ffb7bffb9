"""Fixed position tables."""

import numpy as np
from jaxtyping import Float32


def sincos_1d(num_positions: int, width: int) -> Float32[np.ndarray, "n d"]:
    """The 1-D sine-cosine table over the flat token index (AdaMAE, VideoMAE).

    Channels ``2i`` and ``2i + 1`` share the frequency ``10000 ** (-2i / width)``: the sine stands
    on even channels, the cosine on odd ones. Computed in float64, as the authors do.

    Args:
      num_positions: number of tokens, row-major over (time, height, width).
      width: token width.
    """
    channel = np.arange(width)
    frequency = 10000.0 ** (-2.0 * (channel // 2) / width)
    angle = np.arange(num_positions)[:, None] * frequency[None, :]
    table = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    return table.astype(np.float32)
