"""EVEREST's tokens, small enough for two CPU cores: a few minutes on the embedded moving objects.

The sizes are ours; which tokens are kept, seen and decoded is EVEREST's (arXiv 2211.10636), model
and loss are VideoMAE's, on which it is built. Its selection of frames is left out.
"""

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from configs import common


def get_config(size: str = common.TINY) -> ConfigDict:
    """8 frames of 48 x 48 pixels: of 144 tokens 43 are kept, 14 of them seen and 29 decoded.

    Args:
      size: tiny, or that of another model, given as --config=configs/everest_demo.py:S.

    Raises:
      UserError: for another size.
    """
    config = common.demo_size("everest_demo", common.demo_video(), size)
    config.masking = masking_config("motion", mask_ratio=0.9, keep_ratio=0.3)
    config.optimizer.decay = common.VIDEOMAE_DECAY
    return config
