"""A pretraining run of a few seconds, with every part of it switched on."""

from ml_collections import ConfigDict

from adamae_jax.config import default_config, masking_config


def get_config() -> ConfigDict:
    """4 frames of 16 x 24 pixels: 48 tokens, of which the encoder sees 12."""
    config = default_config()
    config.batch_size = 8
    config.steps = 60
    config.log_every = 1
    config.checkpoint_every = 7
    config.eval_every = 20
    config.pictures_every = 30
    config.compilation_cache_dir = ""

    config.data.num_frames = 4
    config.data.sampling_rate = 2
    config.data.image_size = (16, 24)
    config.data.num_threads = 1
    config.data.num_workers = 1

    config.model.tubelet_size = 2
    config.model.patch_size = 4
    config.model.encoder.update({"width": 32, "depth": 2, "num_heads": 2})
    config.model.decoder.update({"width": 16, "depth": 1, "num_heads": 2})
    config.masking = masking_config("adaptive", mask_ratio=0.75)

    config.optimizer.learning_rate = 3e-2
    config.optimizer.warmup_steps = 5

    config.eval.num_examples = 8
    config.eval.random_draws = 2
    config.eval.knn = True
    config.eval.knn_examples = 16
    return config
