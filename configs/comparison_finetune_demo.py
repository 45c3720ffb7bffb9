"""The fine-tuning of launch/compare.sh: what moves how, after each way to begin.

As in finetune_demo nothing is flipped, mixed or given to RandAugment, since a label is a direction.
Every second frame is taken, as in pretraining: objects move twice as far from token to token, and
the motion is found sooner.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = common.TINY) -> ConfigDict:
    """8 frames of 32 x 32 pixels: 64 tokens, all of which the encoder sees.

    Args:
      size: tiny, there is no other.

    Raises:
      UserError: for another size.
    """
    common.check_size("comparison_finetune_demo", size, (common.TINY,))
    config = common.comparison_video()
    config.batch_size = 32
    config.steps = 3000
    config.eval_every = 250
    config.checkpoint_every = 250
    config.eval.test_views = "3x1"

    config.model.initialization = "classifier"
    config.classifier.num_classes = 0  # as many as the dataset has

    # 1e-3 at the peak, for a batch of 32.
    config.optimizer.learning_rate = 8e-3
    config.optimizer.min_learning_rate = 8e-5
    config.optimizer.decay = common.VIDEOMAE_DECAY
    return config
