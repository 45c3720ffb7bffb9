"""AutoMAE pretraining on ImageNet-1k, ViT-B: 66.7% top-1 linear, 83.32% fine-tuned, as reported.

Source: arXiv 2303.06583 and its released code, github.com/hyperea/automae (run_pretrain.sh,
main_pretrain.py, engine_pretrain.py): MAE's recipe with masks that are learned against an
adversary. How ours differs from theirs: see `common.mae_imagenet`. (Besides, the frozen network
computes in the model's type here, and in float32 there.)

It needs that frozen network, a ViT-B that MAE has pretrained for 800 epochs:

    --config=configs/automae_imagenet.py --config.masking.options.pretrained=DIR

DIR is the workdir or model directory of configs/mae_imagenet.py, or a published checkpoint, with
its decoder, that `python -m adamae_jax.convert import` has made a model directory of.
"""

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from configs import common


def get_config(size: str = "B") -> ConfigDict:
    """Images of 224 x 224 pixels, of whose 196 patches 49 are seen.

    Args:
      size: B.

    Raises:
      UserError: for another size.
    """
    common.check_size("automae_imagenet", size, ("B",))
    config = common.mae_imagenet()  # 4,096 images: 8 GPUs with 64 each, accumulated 8 times
    config.masking = masking_config(
        "adversarial",
        mask_ratio=0.75,
        pretrained="",  # to be given
        vit_width=768,
        vit_depth=12,
        vit_num_heads=12,
        mask_factor=0.5,
        adversarial_weight=0.2,
        gumbel_tau=1.0,
    )
    return config
