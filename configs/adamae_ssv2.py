"""AdaMAE pretraining on Something-Something V2: ViT-B, fine-tuned, is reported at 70.0% top-1.

Source: arXiv 2211.09120 and its released code, github.com/wgcban/adamae, scripts/ssv2/
videomae_vit_base_patch16_224_learnablemasking_ratio_0.95_epoch_800. How ours differs from theirs:
see `common.videomae`.

The size is the argument: --config=configs/adamae_ssv2.py:L. B is published. S, L and H
are extrapolated: everything but the size is B's, and the decoder keeps B's depth.
"""

from ml_collections import ConfigDict

from configs import common

PUBLISHED = ("B",)
EXTRAPOLATED = ("S", "L", "H")


def get_config(size: str = "B") -> ConfigDict:
    """800 epochs of clips of 16 frames at stride 2, of whose 1,568 tokens 78 are seen.

    Args:
      size: S, B, L or H.

    Raises:
      UserError: for another size.
    """
    common.check_size("adamae_ssv2", size, PUBLISHED, EXTRAPOLATED)
    config = common.videomae(
        size,
        num_examples=common.SOMETHING_V2,
        sampling_rate=2,
        batch_size=2048,  # 64 GPUs with 32 clips each: the peak is 1.2e-3, the last rate 8e-5
        epochs=800,
    )
    common.adaptive_masking(config)
    common.keep_every(config, epochs=20)
    return config
