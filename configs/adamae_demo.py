"""AdaMAE small enough for two CPU cores: a few minutes on the embedded moving objects.

The sizes are ours; the method's choices (sampler, losses, optimiser) are AdaMAE's, with a larger
learning rate and fewer heads than its ViT-B.
"""

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from configs import common


def get_config(masking_or_size: str = "adaptive") -> ConfigDict:
    """8 frames of 48 x 48 pixels: 144 tokens, of which the encoder sees 21.

    Args:
      masking_or_size: another strategy to compare with, given as
        --config=configs/adamae_demo.py:random, or another size, as :S.
    """
    sized = masking_or_size in common.DEMO_SIZES
    size, masking = (masking_or_size, "adaptive") if sized else (common.TINY, masking_or_size)
    config = common.demo_size("adamae_demo", common.demo_video(), size)
    options = {"num_heads": 4} if masking == "adaptive" else {}
    config.masking = masking_config(masking, mask_ratio=0.85, **options)
    return config
