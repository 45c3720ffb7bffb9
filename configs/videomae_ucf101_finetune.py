"""VideoMAE fine-tuning on UCF101, the small dataset: ViT-B is reported at 91.3% top-1.

Source: arXiv 2203.12602 and its released code, github.com/MCG-NJU/VideoMAE, scripts/ucf101/
videomae_vit_base_patch16_224_tubemasking_ratio_0.75_epoch_3200/finetune.sh. How ours differs from
theirs: see `finetuning.videomae`.

It begins from 3,200 epochs of configs/videomae_ucf101.py, or from the authors' weights of these:

    --config=configs/videomae_ucf101_finetune.py --config.init_from=PATH

The size is the argument: --config=configs/videomae_ucf101_finetune.py:S. B is published. S, L and H
are extrapolated: everything but the size is B's.
"""

from ml_collections import ConfigDict

from configs import common, finetuning
from configs.finetuning import Run

RUN = Run(  # 8 GPUs
    videos=128,
    per_gpu=16,
    rate=5e-4,
    epochs=100,
    layer_decay=0.7,
    drop_path=0.2,
    head_dropout=0.5,
    last_rate=1e-5,
)
PUBLISHED = ("B",)
EXTRAPOLATED = ("S", "L", "H")


def get_config(size: str = "B") -> ConfigDict:
    """Two clips of each video, of the same 16 frames at stride 4; 101 classes.

    Args:
      size: S, B, L or H.

    Raises:
      UserError: for another size.
    """
    common.check_size("videomae_ucf101_finetune", size, PUBLISHED, EXTRAPOLATED)
    return finetuning.videomae(size, finetuning.UCF101, RUN)
