"""VideoMAE fine-tuning on Kinetics-400: ViT-S, B, L, H are reported at 79.0, 81.5, 85.2, 86.6.

Source: arXiv 2203.12602 and its released code, github.com/MCG-NJU/VideoMAE, scripts/kinetics/
videomae_vit_*_patch16_224_tubemasking_ratio_0.9_epoch_1600/finetune.sh. How ours differs from
theirs: see `finetuning.videomae`. (The paper's table has 512 videos throughout.)

It begins from 1,600 epochs of configs/videomae_k400.py, or from the authors' weights of these:

    --config=configs/videomae_k400_finetune.py --config.init_from=PATH

The size is the argument: --config=configs/videomae_k400_finetune.py:L. All four are published. For
a B of 800 epochs the authors have a script with one clip of each video, which AdaMAE took over:
configs/adamae_k400_finetune.py.
"""

from ml_collections import ConfigDict

from configs import common, finetuning
from configs.finetuning import Run

RUNS = {  # 32 GPUs, and 64
    "S": Run(videos=384, per_gpu=12, rate=5e-4, epochs=150),
    "B": Run(videos=384, per_gpu=6, rate=5e-4, epochs=75),
    "L": Run(videos=128, per_gpu=2, rate=2e-3, epochs=35),
    "H": Run(512, 8, 1e-3, 50, drop_path=0.2, head_dropout=0.5, last_rate=1e-5),
}
PUBLISHED = ("S", "B", "L", "H")
EXTRAPOLATED = ()


def get_config(size: str = "B") -> ConfigDict:
    """Two clips of each video, of the same 16 frames at stride 4; 400 classes.

    Args:
      size: S, B, L or H.

    Raises:
      UserError: for another size.
    """
    common.check_size("videomae_k400_finetune", size, PUBLISHED, EXTRAPOLATED)
    return finetuning.videomae(size, finetuning.KINETICS_400, RUNS[size])
