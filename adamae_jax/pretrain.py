"""Pretrains a masked autoencoder: python -m adamae_jax.pretrain --config=FILE.py --workdir=DIR.

Started again with the same arguments, a run goes on from its newest checkpoint, or ends at once
where it is complete.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from adamae_jax import cli, experiment, job, pictures
from adamae_jax.data.batches import first_clips
from adamae_jax.data.stream import Element
from adamae_jax.errors import UserError
from adamae_jax.pretraining import Pretraining
from adamae_jax.run_data import RunData, open_training
from adamae_jax.task import Variables, example_keys
from adamae_jax.training import rundir
from adamae_jax.training.files import AnyPath
from adamae_jax.training.metrics import RunMetrics
from adamae_jax.training.program import stage_ends

PICTURE_CLIPS = 4


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say, and prints the summary."""
    del argv
    job.main(pretrain)


def pretrain(
    config: ConfigDict, workdir: AnyPath, recipe: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Pretrains to the end.

    Args:
      config: the experiment.
      workdir: the run's directory; where it holds this run, training goes on from there.
      recipe: see `adamae_jax.config.resolve`.

    Returns:
      What ``summary.json`` holds (in the first process; nothing in the others).

    Raises:
      UserError: for whatever is wrong with config, data, workdir or devices, before anything is
        compiled or written in the workdir; later for damaged data or a disk that is full.
    """
    task = experiment.pretraining(config)
    begun = job.begin(config, workdir, task, open_training(config), recipe)
    data = begun.data
    check_foreground(task, data)
    if begun.complete is None and (ratios := describe_ratios(task, begun.config.steps)):
        logging.info("%s", ratios)
    return begun.train(
        draw=drawing(begun.config, workdir, task, data, begun.mesh),
        export=begun.export,
        summary=lambda evaluated: {
            "foreground_lift": evaluated.get("eval_foreground_lift"),
            "foreground_lift_random": evaluated.get("eval_foreground_lift_random"),
            "foreground_source": data.foreground_source,
        },
    )


def check_foreground(task: Pretraining, data: RunData) -> None:
    """Raises a `UserError` where the strategy looks at a foreground that clips do not have."""
    if not task.strategy.sees_foreground:
        return
    name, options = data.config.masking.name, data.config.data
    splits = {options.train_split: data.train, options.validation_split: data.validation}
    for split, dataset in splits.items():
        if dataset is not None and not dataset.has_foreground:
            raise UserError(
                f"masking.name {name!r} looks at the foreground of clips, and split {split!r} of "
                f"{options.dir} has no foreground masks: give data that has them, such as the "
                "embedded moving objects, or choose another masking"
            )
    if options.rand_augment:
        raise UserError(
            f"masking.name {name!r} looks at the foreground of clips, which is not known of clips "
            f"that data.rand_augment {options.rand_augment!r} changes: leave it ''"
        )


def describe_ratios(task: Pretraining, steps: int) -> str:
    """Says which mask ratio is trained with until when; "" where it does not change."""
    ratios = [stage.strategy.mask_ratio for stage in task.stages]
    *ends, _ = stage_ends(steps, len(ratios))
    early = [f"{ratio} until step {end}" for ratio, end in zip(ratios[:-1], ends, strict=True)]
    return f"mask_ratio {', '.join(early)}, then {ratios[-1]}" if early else ""


def drawing(
    config: ConfigDict, workdir: AnyPath, task: Pretraining, data: RunData, mesh: Mesh
) -> Callable[[RunMetrics, int, Variables, str | None], None]:
    """Returns what draws a few held-out clips: to TensorBoard and, with a prefix, as files."""

    @functools.cache
    def clips() -> Element | None:
        if data.validation is None:
            return None
        try:
            spec = experiment.clip_spec(config)
            return first_clips(data.validation, spec, PICTURE_CLIPS)
        except UserError as error:  # no reason to end a run
            logging.warning("no pictures: %s", error)
            return None

    def draw(metrics: RunMetrics, step: int, variables: Variables, prefix: str | None) -> None:
        batch = clips()
        if batch is None:
            return
        keys = example_keys(config.seed, 0, jnp.asarray(batch["example_index"]))
        panels = pictures.compute(task, variables, batch["video"], keys, mesh, **task.known(batch))
        strips = map(pictures.strip, pictures.clips(panels))
        metrics.write_images(step, {f"clips/{index}": drawn for index, drawn in enumerate(strips)})
        if prefix is not None:
            pictures.save(panels, workdir / rundir.PICTURES, prefix)

    return draw


if __name__ == "__main__":
    job.define_flags()
    cli.run(main)
