"""Oracle masks, small enough for two CPU cores: a few minutes on the embedded moving objects.

adamae_demo but for its masks, which know where the objects are: what would a sampler win that finds
them, or one that hides them?
"""

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from configs import common

# The odds of a token of an object to be seen, against one of the background.
WEIGHTS = {"seen": 4.0, "masked": 0.25}


def get_config(raised_or_size: str = "seen") -> ConfigDict:
    """8 frames of 48 x 48 pixels: 144 tokens, of which the encoder sees 21.

    Args:
      raised_or_size: "seen" or "masked", which of the two objects are more often, given as
        --config=configs/oracle_demo.py:masked; or another size, as :S.

    Raises:
      UserError: for anything else.
    """
    is_size = raised_or_size not in WEIGHTS
    size, raised = (raised_or_size, "seen") if is_size else (common.TINY, raised_or_size)
    config = common.demo_size("oracle_demo", common.demo_video(), size)
    config.masking = masking_config("oracle", mask_ratio=0.85, foreground_weight=WEIGHTS[raised])
    return config
