"""AutoMAE on video, small enough for two CPU cores: the embedded moving objects.

The paper has images only. Ours: each time step of the grid gets a mask of its own, which AutoMAE's
generator makes from the middle frame of its tubelets; the model is VideoMAE's. It needs a finished
run of mae_demo:

    python -m adamae_jax.pretrain --config=configs/automae_video_demo.py \
      --workdir=runs/automae_video_demo --config.masking.options.pretrained=runs/mae_demo
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = common.TINY) -> ConfigDict:
    """4 frames of 48 x 48 pixels: two steps of 144 patches, of which 36 each are seen.

    Args:
      size: tiny, which mae_demo's frozen network has.

    Raises:
      UserError: for another size.
    """
    common.check_size("automae_video_demo", size, (common.TINY,))
    config = common.demo_video(num_frames=4, patch_size=4)
    config.masking = common.demo_frozen_masking("adversarial")
    config.optimizer.decay = common.VIDEOMAE_DECAY
    return config
