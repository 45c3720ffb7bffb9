"""AdaMAE fine-tuning on HMDB51. All of it is extrapolated.

The authors (arXiv 2211.09120) do not report on HMDB51. The values are VideoMAE's, whose fine-tuning
is AdaMAE's on other datasets: see `configs/videomae_hmdb51_finetune.py`.

It begins from a model pretrained on another dataset, such as configs/adamae_k400.py's:

    --config=configs/adamae_hmdb51_finetune.py --config.init_from=PATH

The size is the argument: --config=configs/adamae_hmdb51_finetune.py:L.
"""

from ml_collections import ConfigDict

from configs import common, finetuning
from configs.videomae_hmdb51_finetune import RUN

PUBLISHED = ()
EXTRAPOLATED = ("B", "S", "L", "H")


def get_config(size: str = "B") -> ConfigDict:
    """Two clips of each video, of the same 16 frames at stride 2; 51 classes.

    Args:
      size: B, S, L or H.

    Raises:
      UserError: for another size.
    """
    common.check_size("adamae_hmdb51_finetune", size, PUBLISHED, EXTRAPOLATED)
    return finetuning.videomae(size, finetuning.HMDB51, RUN)
