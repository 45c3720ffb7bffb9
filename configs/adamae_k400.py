"""AdaMAE pretraining on Kinetics-400: ViT-B, fine-tuned, is reported at 81.7% top-1.

Source: arXiv 2211.09120 and its released code, github.com/wgcban/adamae, scripts/kinetics/
videomae_vit_base_patch16_224_learnablemasking_ratio_0.95_epoch_800. How ours differs from theirs:
see `common.videomae`.

The size is the argument: --config=configs/adamae_k400.py:L. B is published. S, L and H
are extrapolated: everything but the size is B's, and the decoder keeps B's depth.
"""

from ml_collections import ConfigDict

from configs import common

PUBLISHED = ("B",)
EXTRAPOLATED = ("S", "L", "H")


def get_config(size: str = "B") -> ConfigDict:
    """800 epochs of clips of 16 frames at stride 4, of whose 1,568 tokens 78 are seen.

    Args:
      size: S, B, L or H.

    Raises:
      UserError: for another size.
    """
    common.check_size("adamae_k400", size, PUBLISHED, EXTRAPOLATED)
    config = common.videomae(
        size,
        num_examples=common.KINETICS_400,
        sampling_rate=4,
        batch_size=2048,  # 64 GPUs with 32 clips each: the peak is 1.2e-3, the last rate 8e-5
        epochs=800,
    )
    common.adaptive_masking(config)
    common.keep_every(config, epochs=20)
    return config
