"""MAE's linear probe on ImageNet-1k: ViT-B is reported at 67.8% top-1, L at 76.0%, H at 77.2%.

Source: main_linprobe.py, util/lars.py and FINETUNE.md in github.com/facebookresearch/mae; these
figures are of 1,600 epochs of pretraining. Three things differ. Features are normalised over the
images of a microbatch on all devices, theirs over the 512 on one GPU. Held-out images are the
middle square of the whole image, theirs the middle 224 of 256 pixels. And their warm-up comes to
the peak one step later.

It looks at a run of configs/mae_imagenet.py, or at the authors' weights:

    python -m adamae_jax.probe --config=configs/mae_imagenet_linear.py --workdir=runs/linear \
        --config.data.dir=DIR --config.init_from=PATH

All three sizes are published; H has patches of 14 pixels.
"""

from ml_collections import ConfigDict

from adamae_jax.config import set_size
from configs import common

EPOCHS = {"B": 90, "L": 50, "H": 50}


def get_config(size: str = "B") -> ConfigDict:
    """The class token of images of 224 x 224 pixels; 1,000 classes.

    Args:
      size: B, L or H.

    Raises:
      UserError: for another size.
    """
    common.check_size("mae_imagenet_linear", size, tuple(EPOCHS))
    config = common.mae_imagenet()
    config.batch_size = 16384
    config.epochs = EPOCHS[size]

    config.data.crop_area = (0.08, 1.0)

    set_size(config.model, size)
    config.model.patch_size = 14 if size == "H" else 16
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
