"""Masks by semantic parts, after SemMAE, small enough for two CPU cores: images of moving objects.

The sizes are ours, and so is how parts are found: by clustering what a frozen MAE says of the
patches, where SemMAE (arXiv 2206.10207) trains a network for it. It needs a finished run of
mae_demo:

    python -m adamae_jax.pretrain --config=configs/semmae_demo.py --workdir=runs/semmae_demo \
      --config.masking.options.pretrained=runs/mae_demo
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = common.TINY) -> ConfigDict:
    """Images of 48 x 48 pixels: 144 patches, of which the encoder sees 36.

    Args:
      size: tiny, which mae_demo's frozen network has.

    Raises:
      UserError: for another size.
    """
    common.check_size("semmae_demo", size, (common.TINY,))
    config = common.demo_images()
    config.masking = common.demo_frozen_masking("semantic")
    return config
