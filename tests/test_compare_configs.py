"""The configs of launch/compare.sh: one experiment under every kind of mask."""

import pytest

from adamae_jax import experiment
from adamae_jax.errors import UserError
from tests.recipes import module

COMPARISON = ("comparison_demo", "comparison_finetune_demo", "comparison_probe_demo")


def test_the_comparison_differs_in_its_masks() -> None:
    """All other fields are the same for all; the encoder sees as many tokens, but where it says."""
    pretrain, finetune, probe = (module(name) for name in COMPARISON)
    for mask in pretrain.MASKS:
        config = pretrain.get_config(mask)
        task = experiment.pretraining(config)
        seen = {"adaptive_85": 9, "adaptive_90": 6}.get(mask, 16)
        assert task.strategy.num_visible(task.model.geometry.grid) == seen, mask
        if mask == "adaptive_inverted":
            assert config.objective.sampling_loss_weight == -1e-4
            config.objective.sampling_loss_weight = 1e-4
        others = {**config.to_dict(), "masking": None}
        assert others == {**pretrain.get_config("random").to_dict(), "masking": None}
    for later in (finetune.get_config(), probe.get_config()):
        assert later.model.encoder == pretrain.get_config().model.encoder
        assert later.data.to_dict() == pretrain.get_config().data.to_dict()
    for recipe, known in ((pretrain, "adaptive"), (finetune, "tiny"), (probe, "tiny")):
        with pytest.raises(UserError, match=rf"configs/comparison.*'S'.*: use one of {known}"):
            recipe.get_config("S")
