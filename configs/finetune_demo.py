"""Fine-tuning small enough for two CPU cores: what moves how, in the embedded moving objects.

The model is adamae_demo's, so that it can begin from its run; the sizes are ours:

    python -m adamae_jax.finetune --config=configs/finetune_demo.py --workdir=runs/finetune_demo \
      --config.init_from=runs/demo

The labels are directions of motion. A mirrored, turned or mixed clip would have another label than
it says, so that nothing is flipped, mixed or given to RandAugment here. What moves how cannot be
seen in any one frame, and stands in no mean of the pretrained features: for some 600 steps nothing
seems to be learned. With every frame (not every second), a lower rate than in pretraining and no
layer-wise decay it is found all the same; see docs/results.md.
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
    config.steps = 1500
    config.eval_every = 300
    config.checkpoint_every = 300
    config.pictures_every = 0

    config.data.crop = "center"
    config.data.sampling_rate = 1
    config.eval.test_views = "3x1"

    config.model.initialization = "classifier"
    config.classifier.num_classes = 0  # as many as the dataset has

    # 1e-3 at the peak, for a batch of 32.
    config.optimizer.learning_rate = 8e-3
    config.optimizer.min_learning_rate = 8e-6
    config.optimizer.decay = common.VIDEOMAE_DECAY
    return config
