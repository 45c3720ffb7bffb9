"""AdaMAE fine-tuning on Kinetics-400: ViT-B is reported at 81.7% top-1.

Source: arXiv 2211.09120 and its released code, github.com/wgcban/adamae: the script for 64 GPUs,
which is in the folder of the other dataset, scripts/ssv2/videomae_vit_base_patch16_224_
learnablemasking_ratio_0.95_epoch_800/example-finetune.sh (the authors' issue 1). It is VideoMAE's
script for 800 epochs. How ours differs from theirs: see `finetuning.videomae`.

It begins from configs/adamae_k400.py, or from the authors' weights:

    --config=configs/adamae_k400_finetune.py --config.init_from=PATH

The size is the argument: --config=configs/adamae_k400_finetune.py:L. B is published. S, L and H
are extrapolated: the values are those of the same sizes in configs/videomae_k400_finetune.py.
"""

from ml_collections import ConfigDict

from configs import common, finetuning
from configs.finetuning import Run
from configs.videomae_k400_finetune import RUNS as VIDEOMAE_RUNS

RUNS = {
    "S": VIDEOMAE_RUNS["S"],
    "B": Run(videos=512, per_gpu=8, rate=1e-3, epochs=100, samples=1),
    "L": VIDEOMAE_RUNS["L"],
    "H": VIDEOMAE_RUNS["H"],
}
PUBLISHED = ("B",)
EXTRAPOLATED = ("S", "L", "H")


def get_config(size: str = "B") -> ConfigDict:
    """Clips of 16 frames at stride 4, of B one of each video; 400 classes.

    Args:
      size: S, B, L or H.

    Raises:
      UserError: for another size.
    """
    common.check_size("adamae_k400_finetune", size, PUBLISHED, EXTRAPOLATED)
    return finetuning.videomae(size, finetuning.KINETICS_400, RUNS[size])
