"""VideoMAE small enough for two CPU cores: a few minutes on the embedded moving objects.

The sizes are ours; tube masks, model and loss are VideoMAE's (arXiv 2203.12602).
"""

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from configs import common


def get_config(size: str = common.TINY) -> ConfigDict:
    """8 frames of 48 x 48 pixels: 144 tokens, of which the encoder sees 24, 6 in each step.

    Args:
      size: tiny, or that of another model, given as --config=configs/videomae_demo.py:S.

    Raises:
      UserError: for another size.
    """
    config = common.demo_size("videomae_demo", common.demo_video(), size)
    config.masking = masking_config("tube", mask_ratio=0.85)
    config.optimizer.decay = common.VIDEOMAE_DECAY
    return config
