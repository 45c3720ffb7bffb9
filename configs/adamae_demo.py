"""AdaMAE small enough for two CPU cores: a few minutes on the embedded moving objects.

The sizes are ours; the method's choices (sampler, losses, optimiser) are AdaMAE's, with a larger
learning rate and fewer heads than its ViT-B.
"""

from ml_collections import ConfigDict

from adamae_jax.config import default_config, masking_config


def get_config(masking: str = "adaptive") -> ConfigDict:
    """8 frames of 48 x 48 pixels: 144 tokens, of which the encoder sees 21.

    Args:
      masking: another strategy to compare with, given as --config=configs/adamae_demo.py:random.
    """
    config = default_config()
    config.batch_size = 32
    config.steps = 500
    config.log_every = 1
    config.checkpoint_every = 100
    config.eval_every = 200
    config.pictures_every = 200

    config.data.dir = "runs/data/moving_objects_demo"
    config.data.num_frames = 8
    config.data.sampling_rate = 2
    config.data.image_size = (48, 48)
    config.data.num_threads = 2

    config.model.tubelet_size = 2
    config.model.patch_size = 8
    config.model.encoder.update({"width": 128, "depth": 3, "num_heads": 4})
    config.model.decoder.update({"width": 96, "depth": 2, "num_heads": 2})
    config.model.unroll = 3  # worth it on a CPU, with so few blocks

    options = {"num_heads": 4} if masking == "adaptive" else {}
    config.masking = masking_config(masking, mask_ratio=0.85, **options)

    # 2e-3 at the peak, for a batch of 32.
    config.optimizer.learning_rate = 1.6e-2
    config.optimizer.min_learning_rate = 8e-4
    config.optimizer.warmup_steps = 40

    config.eval.num_examples = 256
    return config
