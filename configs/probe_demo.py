"""Probes of an encoder that a demo has trained: a few minutes on two CPU cores.

    python -m adamae_jax.probe --config=configs/probe_demo.py --workdir=runs/probe_demo \
        --config.init_from=runs/demo

The model is that of adamae_demo, videomae_demo and launch/demo.sh; the sizes and rates are ours.
What moves how is to be told: clips are not mirrored. Latents hold next to nothing of it in their
mean over all tokens; how they change from one time step to the next tells more, so that there is a
probe of that. Every second frame, as in pretraining; see docs/results.md for what else was tried.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = common.TINY) -> ConfigDict:
    """8 frames of 48 x 48 pixels: 144 tokens, all of which the encoder sees.

    Args:
      size: the demo's own, or that of a published model.

    Raises:
      UserError: for another size.
    """
    config = common.demo_size("probe_demo", common.demo_video(), size)
    config.steps = 300
    config.log_every = 10
    config.eval_every = 100
    config.pictures_every = 0

    config.data.crop = "center"

    common.demo_probes(config)
    return config
