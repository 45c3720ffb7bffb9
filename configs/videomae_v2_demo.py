"""VideoMAE V2 small enough for two CPU cores: a few minutes on the embedded moving objects.

The sizes are ours; masks of encoder and decoder are VideoMAE V2's (arXiv 2303.16727), model and
loss VideoMAE's.
"""

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from configs import common


def get_config(size: str = common.TINY) -> ConfigDict:
    """8 frames of 48 x 48 pixels: 144 tokens, of which the encoder sees 24, and 72 are decoded.

    Of these, 12 are among the visible ones, and weigh nothing.

    Args:
      size: tiny, or that of another model, given as --config=configs/videomae_v2_demo.py:S.

    Raises:
      UserError: for another size.
    """
    config = common.demo_size("videomae_v2_demo", common.demo_video(), size)
    config.masking = masking_config("dual", mask_ratio=0.85, decoder_mask_ratio=0.5)
    config.optimizer.decay = common.VIDEOMAE_DECAY
    return config
