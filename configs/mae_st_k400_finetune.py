"""MAE-ST fine-tuning on Kinetics-400: ViT-L is reported at 84.8% top-1, H at 85.1%.

Source: arXiv 2205.09113 and its released code, github.com/facebookresearch/mae_st (FINETUNE.md,
main_finetune.py), for L; and the code that its checkpoints were made with, github.com/
facebookresearch/SlowFast (configs/masked_ssl/k400_VIT_*_16x4_FT.yaml), for the others. L is the
same in both but for its last rate: 1e-6 whatever the batch here, as in mae_st's.

The clips of an update are our choice, 512 and of H 256: neither says how many GPUs there were. What
is decayed is mae_st's at all sizes; SlowFast decays class token and tables, too. The code's warm-up
comes to its peak one step later than ours.

It begins from configs/mae_st_k400.py, or from the authors' weights:

    --config=configs/mae_st_k400_finetune.py:L --config.init_from=PATH

The size is the argument, as there; the authors recommend L. L and H are published. B is
extrapolated: SlowFast's file for it has a rate, but for a batch that it leaves open, so that the
rates are L's.
"""

from ml_collections import ConfigDict

from configs import common, finetuning
from configs.finetuning import Run

RUNS = {  # rates for 256 clips
    "B": Run(256, 2, 2.4e-3, 75, head_dropout=0.3, layer_decay=0.65, last_rate=5e-7),
    "L": Run(256, 2, 2.4e-3, 50, head_dropout=0.3, drop_path=0.2, last_rate=5e-7),
    # In SlowFast's units 3e-4 and 1e-6, for 16 clips.
    "H": Run(
        videos=256,
        per_gpu=2,
        rate=4.8e-3,
        epochs=75,
        samples=1,
        layer_decay=0.8,
        drop_path=0.2,
        head_dropout=0.5,
        last_rate=1.6e-5,
    ),
}
PUBLISHED = ("L", "H")
EXTRAPOLATED = ("B",)


def get_config(size: str = "B") -> ConfigDict:
    """Clips of 16 frames, equally long in seconds, of B and L two of each video; 400 classes.

    Args:
      size: B, L or H.

    Raises:
      UserError: for another size.
    """
    common.check_size("mae_st_k400_finetune", size, PUBLISHED, EXTRAPOLATED)
    return finetuning.mae_st_k400(size, RUNS[size])
