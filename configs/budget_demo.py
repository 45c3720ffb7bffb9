"""A token budget, small enough for two CPU cores: a few minutes on the embedded moving objects.

All of it is ours: clips in which more moves see more tokens, the others fewer, and a batch as many
as with random masks. Model and loss are VideoMAE's.
"""

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from configs import common


def get_config(size: str = common.TINY) -> ConfigDict:
    """8 frames of 48 x 48 pixels: of 144 tokens the encoder sees 10 to 42, on average 21.

    Args:
      size: tiny, or that of another model, given as --config=configs/budget_demo.py:S.

    Raises:
      UserError: for another size.
    """
    config = common.demo_size("budget_demo", common.demo_video(), size)
    config.masking = masking_config("budget", mask_ratio=0.85, least=0.5, most=2.0)
    config.optimizer.decay = common.VIDEOMAE_DECAY
    return config
