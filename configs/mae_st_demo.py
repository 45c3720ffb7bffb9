"""MAE-ST small enough for two CPU cores: a few minutes on the embedded moving objects.

The sizes are ours; what is particular about MAE-ST (arXiv 2205.09113) is all here: repeated
sampling, clips of equal time, separable positions, two class tokens, half of the frames predicted,
clipped gradients. The clipping is weaker than the recipe's, which has 400 epochs.
"""

from ml_collections import ConfigDict

from adamae_jax.config import masking_config, set_family
from configs import common


def get_config(size: str = common.TINY) -> ConfigDict:
    """Two clips of 16 videos: 8 frames of 48 x 48 pixels, 144 tokens, of which 21 are seen.

    Args:
      size: tiny, or that of another model, given as --config=configs/mae_st_demo.py:S.

    Raises:
      UserError: for another size.
    """
    config = common.demo_size("mae_st_demo", common.demo_video(), size)
    config.data.repeats = 2
    config.data.frame_sampling = "time_scaled"
    config.data.target_fps = 25.0  # the embedded videos' own
    config.data.crop = "random_resized"
    config.data.interpolation = "bilinear_without_antialias"
    config.data.horizontal_flip = True

    set_family(config.model, "mae_st")
    config.model.predicted_frames = 4
    config.masking = masking_config("random", mask_ratio=0.85)

    common.mae_st_objective(config)

    config.optimizer.rate_counts = "videos"
    config.optimizer.learning_rate = 3.2e-2  # 2e-3 at the peak, for 16 videos
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.decay = common.MAE_ST_DECAY
    config.optimizer.clip_grad_norm = 1.0
    return config
