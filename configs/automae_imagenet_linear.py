"""AutoMAE's linear probe on ImageNet-1k: ViT-B is reported at 66.7% top-1.

Source: arXiv 2303.06583 and its released code, github.com/hyperea/automae, which runs MAE's. How
ours differs from theirs: see `configs/mae_imagenet_linear.py`.

It looks at a run of configs/automae_imagenet.py, or at the authors' weights:

    python -m adamae_jax.probe --config=configs/automae_imagenet_linear.py --workdir=runs/linear \
        --config.data.dir=DIR --config.init_from=PATH
"""

from ml_collections import ConfigDict

from configs import common, mae_imagenet_linear


def get_config(size: str = "B") -> ConfigDict:
    """The class token of images of 224 x 224 pixels; 1,000 classes.

    Args:
      size: B.

    Raises:
      UserError: for another size.
    """
    common.check_size("automae_imagenet_linear", size, ("B",))
    return mae_imagenet_linear.get_config(size)
