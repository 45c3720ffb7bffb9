"""Fine-tuning small enough for two CPU cores: what moves how, in the embedded moving objects.

The model is adamae_demo's, so that it can begin from its run; the sizes are ours:

    python -m adamae_jax.finetune --config=configs/finetune_demo.py --workdir=runs/finetune_demo \
      --config.init_from=runs/demo

The labels are directions of motion. A mirrored, turned or mixed clip would have another label than
it says, so that nothing is flipped, mixed or given to RandAugment here.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = common.TINY) -> ConfigDict:
    """8 frames of 48 x 48 pixels: 144 tokens, all of which the encoder sees.

    Args:
      size: tiny, or that of another model, given as --config=configs/finetune_demo.py:S.

    Raises:
      UserError: for another size.
    """
    config = common.demo_size("finetune_demo", common.demo_video(), size)
    config.steps = 300
    config.eval_every = 100
    config.pictures_every = 0

    config.data.crop = "random_resized"
    config.data.crop_area = (0.5, 1.0)

    config.model.initialization = "classifier"
    config.model.drop_path = 0.05
    config.classifier.num_classes = 0  # as many as the dataset has
    config.classifier.label_smoothing = 0.1

    # 2e-3 at the peak, for a batch of 32.
    config.optimizer.learning_rate = 1.6e-2
    config.optimizer.min_learning_rate = 8e-6
    config.optimizer.b2 = 0.999
    config.optimizer.decay = common.VIDEOMAE_DECAY
    config.optimizer.layer_decay = 0.75
    return config
