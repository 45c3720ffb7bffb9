"""VideoMAE fine-tuning on HMDB51, the smallest dataset. All of it is extrapolated.

The authors (arXiv 2203.12602) report on HMDB51, and released no script for it. Here their recipe
for UCF101 (`configs/videomae_ucf101_finetune.py`) with the rate, the epochs and the stride that
other people's public scripts of the same code have for a ViT-B on this dataset. How ours differs
from the authors' code: see `finetuning.videomae`.

It begins from a model pretrained on another dataset, or on this one:

    --config=configs/videomae_hmdb51_finetune.py --config.init_from=PATH

The size is the argument: --config=configs/videomae_hmdb51_finetune.py:S. Everything but the size is
the same.
"""

from ml_collections import ConfigDict

from configs import common, finetuning
from configs.videomae_ucf101_finetune import RUN as UCF101_RUN

RUN = UCF101_RUN._replace(rate=1e-3, epochs=50)
PUBLISHED = ()
EXTRAPOLATED = ("B", "S", "L", "H")


def get_config(size: str = "B") -> ConfigDict:
    """Two clips of each video, of the same 16 frames at stride 2; 51 classes.

    Args:
      size: B, S, L or H.

    Raises:
      UserError: for another size.
    """
    common.check_size("videomae_hmdb51_finetune", size, PUBLISHED, EXTRAPOLATED)
    return finetuning.videomae(size, finetuning.HMDB51, RUN)
