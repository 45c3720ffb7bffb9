"""What a masking strategy holds frozen: somebody's network, and under which licence."""

from typing import Any, NamedTuple

import jax

from adamae_jax.errors import UserError
from adamae_jax.pretrained import Pretrained, flatten, load_pretrained
from adamae_jax.pretraining import Pretraining


class Frozen(NamedTuple):
    """Other people's weights in a model that is to be trained.

    Attributes:
      variables: the arrays; None where a strategy holds none, or a run has them in its checkpoint.
      license: theirs, as it was when they were read; "" where none is known.
    """

    variables: Any = None
    license: str = ""


def read(pretraining: Pretraining) -> Frozen:
    """What a strategy holds frozen, from the directory that it names.

    Raises:
      UserError: where the directory cannot be loaded, or what it holds does not fit.
    """
    wanted = jax.eval_shape(pretraining.init, jax.random.key(0))["frozen"]
    if not jax.tree.leaves(wanted):
        return Frozen()
    strategy = pretraining.strategy
    source = load_pretrained(strategy.frozen_source())
    _check_pixels(source, pretraining)
    encoder, grid = source.model.encoder_definition, pretraining.model.geometry.grid
    variables = strategy.adopt(encoder, source.params["encoder"], grid)
    expected, found = (
        {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}
        for tree in (wanted, variables)
    )
    wrong = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if wrong:
        raise UserError(
            f"{strategy.frozen_source()} has other arrays than the network that is held frozen: "
            f"{len(wrong)} differ, first {wrong[0]} (expected {expected.get(wrong[0])}, found "
            f"{found.get(wrong[0])}): its patch_size, mlp_ratio and layer_scale must be those of "
            "the published image MAE and of this model's grid"
        )
    return Frozen(variables, source.license)


def _check_pixels(source: Pretrained, pretraining: Pretraining) -> None:
    """Both see the same pixels, so they must have been normalised alike."""
    found, own = source.task.objective, pretraining.objective
    if (found.pixel_mean, found.pixel_std) != (own.pixel_mean, own.pixel_std):
        raise UserError(
            f"{pretraining.strategy.frozen_source()} was trained on pixels with mean "
            f"{found.pixel_mean} and std {found.pixel_std}, this model has {own.pixel_mean} and "
            f"{own.pixel_std}: set objective.pixel_mean and objective.pixel_std to the former"
        )
