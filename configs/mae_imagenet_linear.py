"""MAE's linear probe on ImageNet-1k, ViT-B, 90 epochs: 67.8% top-1 for 1,600 epochs of pretraining.

Source: main_linprobe.py, util/lars.py and FINETUNE.md in github.com/facebookresearch/mae. Three
things differ. Features are normalised over the clips of a microbatch on all devices, theirs over
the 512 on one GPU. Held-out images are the middle square of the whole image, theirs the middle 224
of 256 pixels. And the best of several rates is not looked for: there is the authors' alone.

Give the pretrained model with --config.init_from=PATH.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The class token of whole images of 224 x 224 pixels."""
    config = common.mae_imagenet()
    config.batch_size = 16384
    config.epochs = 90

    config.data.crop_area = (0.08, 1.0)

    config.classifier.num_classes = 1000
    config.classifier.pooling = "first"
    config.probe.kinds = ("linear",)
    config.probe.rates = (1.0,)
    config.probe.optimizer = "lars"

    # With 16,384 images the peak is 6.4; by a cosine to 0.
    config.optimizer.learning_rate = 0.1
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.warmup_epochs = 10.0
    config.optimizer.b1 = 0.9  # the momentum
    config.optimizer.weight_decay = 0.0

    config.eval.num_examples = 0
    config.eval.batch_size = 1024
    common.keep_every(config, epochs=5)
    return config
