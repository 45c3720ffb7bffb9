"""VideoMAE pretraining on UCF101, the small dataset: lower mask ratio, higher rate, many epochs.

Source: arXiv 2203.12602 and its released code, github.com/MCG-NJU/VideoMAE, scripts/ucf101/
videomae_vit_base_patch16_224_tubemasking_ratio_0.75_epoch_3200/pretrain.sh. How ours differs from
theirs: see `common.videomae`.

The size is the argument: --config=configs/videomae_ucf101.py:S. B is published. S, L and H are
extrapolated: everything but the size is B's.
"""

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from configs import common

PUBLISHED = ("B",)
EXTRAPOLATED = ("S", "L", "H")


def get_config(size: str = "B") -> ConfigDict:
    """3,200 epochs of clips of 16 frames at stride 4, of whose 1,568 tokens 392 are seen.

    Args:
      size: S, B, L or H.

    Raises:
      UserError: for another size.
    """
    common.check_size("videomae_ucf101", size, PUBLISHED, EXTRAPOLATED)
    config = common.videomae(
        size,
        num_examples=common.UCF101,
        sampling_rate=4,
        batch_size=192,  # 8 GPUs with 24 clips each
        epochs=3200,
    )
    config.masking = masking_config("tube", mask_ratio=0.75)
    config.optimizer.learning_rate = 3e-4  # with 192 clips the peak is 2.25e-4
    common.keep_every(config, epochs=100)
    return config
