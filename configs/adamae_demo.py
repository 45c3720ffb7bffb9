"""AdaMAE small enough for two CPU cores: a few minutes on the embedded moving objects.

The sizes are ours; the method's choices (sampler, losses, optimiser) are AdaMAE's, with a larger
learning rate and fewer heads than its ViT-B.
"""

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from configs import common


def get_config(masking: str = "adaptive") -> ConfigDict:
    """8 frames of 48 x 48 pixels: 144 tokens, of which the encoder sees 21.

    Args:
      masking: another strategy to compare with, given as --config=configs/adamae_demo.py:random.
    """
    config = common.demo_video()
    options = {"num_heads": 4} if masking == "adaptive" else {}
    config.masking = masking_config(masking, mask_ratio=0.85, **options)
    return config
