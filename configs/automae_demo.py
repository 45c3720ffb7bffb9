"""AutoMAE small enough for two CPU cores: single frames of the embedded moving objects.

The sizes are ours; generator, discriminator and losses are AutoMAE's (arXiv 2303.06583). It needs a
finished run of mae_demo:

    python -m adamae_jax.pretrain --config=configs/automae_demo.py --workdir=runs/automae_demo \
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
    common.check_size("automae_demo", size, (common.TINY,))
    config = common.demo_images()
    config.masking = common.demo_frozen_masking("adversarial")
    return config
