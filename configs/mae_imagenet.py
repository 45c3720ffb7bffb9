"""MAE pretraining on ImageNet-1k, ViT-B, 800 epochs: what AutoMAE takes as its frozen network.

Source: arXiv 2111.06377 and its released code, github.com/facebookresearch/mae (PRETRAIN.md,
main_pretrain.py). How ours differs from theirs: see `common.mae_imagenet`.

ViT-B alone: it is here for AutoMAE.
"""

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from configs import common


def get_config(size: str = "B") -> ConfigDict:
    """Images of 224 x 224 pixels, of whose 196 patches 49 are seen, drawn at random.

    Args:
      size: B.

    Raises:
      UserError: for another size.
    """
    common.check_size("mae_imagenet", size, ("B",))
    config = common.mae_imagenet()
    config.masking = masking_config("random", mask_ratio=0.75)
    return config
