"""AutoMAE fine-tuning on ImageNet-1k: ViT-B is reported at 83.32% top-1.

Source: arXiv 2303.06583 and its released code, github.com/hyperea/automae (run_finetune.sh), which
runs MAE's. How ours differs from theirs: see `finetuning.mae_imagenet`.

It begins from configs/automae_imagenet.py, or from the authors' weights:

    --config=configs/automae_imagenet_finetune.py --config.init_from=PATH
"""

from ml_collections import ConfigDict

from configs import common, finetuning
from configs.mae_imagenet_finetune import RUNS


def get_config(size: str = "B") -> ConfigDict:
    """Images of 224 x 224 pixels; 1,000 classes.

    Args:
      size: B.

    Raises:
      UserError: for another size.
    """
    common.check_size("automae_imagenet_finetune", size, ("B",))
    run = RUNS["B"]._replace(per_gpu=64)  # 8 GPUs, accumulated twice
    return finetuning.mae_imagenet(size, run)
