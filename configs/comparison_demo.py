"""The pretraining of launch/compare.sh: one small model under every kind of mask.

Whatever is drawn, the encoder sees 16 of 64 tokens, so that masks alone differ. Sizes, ratio, rate
and steps are ours; they were chosen with random masks only, before any other was tried
(docs/results.md).
"""

from typing import Any

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from adamae_jax.errors import UserError
from configs import common

RATIO = 0.75
# The strategy and its options, by the name of the mask. Those of adaptive are in docs/masking.md.
MASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "adaptive": ("adaptive", {}),
    "adaptive_85": ("adaptive", {"mask_ratio": 0.85}),
    "adaptive_90": ("adaptive", {"mask_ratio": 0.9}),
    "adaptive_sharp": ("adaptive", {"temperature": 0.5}),
    "adaptive_baseline": (
        "adaptive",
        {"baseline": "clip", "entropy_weight": 0.1, "entropy_target": 0.9},
    ),
    # Its reward with the other sign: tokens that reconstruct badly are hidden, not shown.
    "adaptive_inverted": ("adaptive", {"entropy_weight": 0.1, "entropy_target": 0.9}),
    "random": ("random", {}),
    "tube": ("tube", {}),
    "frame": ("frame", {}),
    # VideoMAE V2's: half of the tokens are decoded.
    "dual": ("dual", {"decoder_mask_ratio": 0.5}),
    # EVEREST's: of the tokens half are kept, and half of these are seen, for the same 16.
    "motion": ("motion", {"keep_ratio": 0.5}),
    "oracle": ("oracle", {"foreground_weight": 16.0}),
    "oracle_masked": ("oracle", {"foreground_weight": 1 / 16}),
}


def get_config(mask: str = "adaptive") -> ConfigDict:
    """8 frames of 32 x 32 pixels: 64 tokens.

    Args:
      mask: one of `MASKS`, given as --config=configs/comparison_demo.py:random.

    Raises:
      UserError: for another name.
    """
    if mask not in MASKS:
        raise UserError(
            f"configs/comparison_demo.py has no mask {mask!r}: use one of {', '.join(MASKS)}"
        )
    config = common.comparison_video()
    config.batch_size = 64
    config.steps = 1000
    config.checkpoint_every = 250
    config.eval_every = 500
    # 2e-3 at the peak, for a batch of 64.
    config.optimizer.learning_rate = 8e-3
    config.optimizer.min_learning_rate = 8e-5

    strategy, options = MASKS[mask]
    if strategy == "adaptive":
        options = {"num_heads": 4, **options}
    if mask == "adaptive_inverted":
        config.objective.sampling_loss_weight *= -1
    config.masking = masking_config(strategy, **{"mask_ratio": RATIO, **options})
    return config
