"""The probes of launch/compare.sh: what frozen latents tell of the motion, after each way to begin.

Rates and steps are those of probe_demo.
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
    common.check_size("comparison_probe_demo", size, (common.TINY,))
    config = common.comparison_video()
    config.steps = 300
    config.eval_every = 100
    common.demo_probes(config)
    return config
