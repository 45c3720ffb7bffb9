"""MAE small enough for two CPU cores: single frames of the embedded moving objects.

The sizes are ours; masks, model and loss are MAE's (arXiv 2111.06377). Its encoder is what
automae_demo, automae_video_demo and semmae_demo take as their frozen network:

    python -m adamae_jax.pretrain --config=configs/mae_demo.py --workdir=runs/mae_demo
"""

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from configs import common


def get_config(size: str = common.TINY) -> ConfigDict:
    """Images of 48 x 48 pixels: 144 patches, of which the encoder sees 36.

    Args:
      size: tiny, or that of another model, given as --config=configs/mae_demo.py:S.

    Raises:
      UserError: for another size.
    """
    config = common.demo_size("mae_demo", common.demo_images(), size)
    config.masking = masking_config("random", mask_ratio=0.75)
    return config
