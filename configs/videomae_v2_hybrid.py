"""VideoMAE V2 pretraining on UnlabeledHybrid: ViT-g, fine-tuned on K400, is reported at 87.2%.

Source: arXiv 2303.16727 and its released code, github.com/OpenGVLab/VideoMAEv2, scripts/pretrain/
vit_*_hybrid_pt.sh and run_mae_pretraining.py. Model, targets and optimiser are VideoMAE's; how ours
differs from theirs: see `common.videomae`. What V2 changes:

- Masks: the decoder is asked for running cells, half of the tokens, whatever the encoder saw.
- Decoders of L, H and g: 512 wide, 4 blocks. g has patches of 14 pixels, 2,048 tokens in a clip.
- Four clips of each video, of the same frames, with a crop and masks of their own. Rates are for
  256 videos, and larger.
- g's gradients are clipped.

The mixture (Kinetics, Something-Something V2, AVA, WebVid and videos of the authors' own) is not
published: give your own with --config.data.dir. The authors take every second frame of
Something-Something V2, every fourth of all else; here one data.sampling_rate is for all. The mask
token is not decayed, as their code means it; where it compiles the model first (PyTorch from 2.0),
it is.

The size is the argument: --config=configs/videomae_v2_hybrid.py:g. All four are published.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from adamae_jax.config import masking_config
from configs import common


class Run(NamedTuple):
    """In what the scripts of the sizes differ.

    Attributes:
      videos: in an update: GPUs times 32.
      epochs: passes over the videos.
      rate: for 256 videos.
      clip_grad_norm: of the whole gradient; 0: it is left as it is.
    """

    videos: int
    epochs: int
    rate: float = 1e-3
    clip_grad_norm: float = 0.0


RUNS = {
    "B": Run(1024, 200),
    "L": Run(1536, 300),
    "H": Run(2048, 300),
    "g": Run(2048, 300, rate=6e-4, clip_grad_norm=0.02),
}
PUBLISHED = tuple(RUNS)
EXTRAPOLATED = ()
CLIPS = 4  # of each video


def get_config(size: str = "B") -> ConfigDict:
    """800 (B) or 1,200 epochs in clips: of 1,568 tokens 160 are seen and 784 decoded.

    Args:
      size: B, L, H or g.

    Raises:
      UserError: for another size.
    """
    common.check_size("videomae_v2_hybrid", size, PUBLISHED, EXTRAPOLATED)
    run = RUNS[size]
    config = common.videomae(
        size,
        num_examples=common.UNLABELED_HYBRID,
        sampling_rate=4,
        batch_size=CLIPS * run.videos,
        epochs=run.epochs,
    )
    config.data.repeats = CLIPS
    config.data.shared_frames = True
    if size != "B":
        config.model.decoder.update({"width": 512, "depth": 4, "num_heads": 8})
    if size == "g":
        config.model.patch_size = 14
    config.masking = masking_config("dual", mask_ratio=0.9, decoder_mask_ratio=0.5)

    config.optimizer.rate_counts = "videos"
    config.optimizer.learning_rate = run.rate
    config.optimizer.warmup_epochs = run.epochs / 10
    config.optimizer.clip_grad_norm = run.clip_grad_norm
    common.keep_every(config, epochs=5)
    return config
