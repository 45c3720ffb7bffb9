"""AdaMAE on images, small enough for two CPU cores: single frames of the embedded moving objects.

The paper has videos only. Ours: its sampler and its sampling loss on MAE's model, so that
mae_demo and automae_demo are the same but for their masks.
"""

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from configs import common


def get_config(size: str = common.TINY) -> ConfigDict:
    """Images of 48 x 48 pixels: 144 patches, of which the encoder sees 36.

    Args:
      size: tiny, or that of another model, given as --config=configs/adamae_image_demo.py:S.

    Raises:
      UserError: for another size.
    """
    config = common.demo_size("adamae_image_demo", common.demo_images(), size)
    config.masking = masking_config("adaptive", mask_ratio=0.75, num_heads=4)
    config.optimizer.decay = (*config.optimizer.decay, common.SAMPLER_DECAY)
    return config
