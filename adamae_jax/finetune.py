"""Fine-tunes a classifier: python -m adamae_jax.finetune --config=FILE.py --workdir=DIR.

``--config.init_from=PATH`` says what it starts from: a run or a model of pretraining, an authors'
checkpoint, or a Hugging Face directory; without it, training starts from scratch. Started again
with the same arguments, a run goes on from its newest checkpoint.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from adamae_jax import agreement, cli, evaluate, experiment, job, results
from adamae_jax.best import Best
from adamae_jax.classes import for_classes
from adamae_jax.data.temporal import Views
from adamae_jax.loaded import parse_views
from adamae_jax.run_data import open_training
from adamae_jax.training import files, rundir
from adamae_jax.training.files import AnyPath

TEST = "test"


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say, and prints the summary."""
    del argv
    job.main(finetune)


def finetune(
    config: ConfigDict, workdir: AnyPath, recipe: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Fine-tunes to the end, and tests what came of it in ``config.eval.views``.

    Args:
      config: the experiment.
      workdir: the run's directory; where it holds this run, training goes on from there.
      recipe: see `configs.resolve`.

    Returns:
      What ``summary.json`` holds (in the first process; nothing in the others).

    Raises:
      UserError: for whatever is wrong with config, data, workdir or devices, before anything is
        compiled or written in the workdir; later for damaged data or a disk that is full.
    """
    train = open_training(config)
    config = for_classes(config, train)
    task = experiment.classification(config)
    test_views = parse_views(config.eval.test_views) if config.eval.test_views else None
    begun = job.begin(config, workdir, task, train, recipe, Views())
    best = Best(workdir / rundir.BEST, begun.config, train.label_names, begun.initial.license)
    summary = begun.train(evaluated=best, export=begun.export)
    if test_views is None or begun.data.validation is None:
        return summary
    return {**summary, "test": test(begun, test_views)}


def test(begun: job.Begun, views: Views) -> dict[str, Any]:
    """Scores all held-out videos with the model that a complete run has left.

    What was found is kept in the workdir; a test of the same step that is there is not made again.
    """
    output = begun.workdir / TEST
    stored: list[Any] = agreement.gathered(stored_figures(output / results.METRICS))
    asked = {"views": "x".join(map(str, views)), "step": begun.config.steps}
    if stored[0] is not None and asked.items() <= stored[0].items():
        return dict(stored[0])
    loaded = evaluate.load_classifier(str(begun.workdir / rundir.MODEL))
    config = begun.config.copy_and_resolve_references()
    config.eval.num_examples = 0
    loaded = dataclasses.replace(loaded, config=config)
    assert begun.data.validation is not None  # the caller has seen to it
    return evaluate.evaluate(loaded, begun.data.validation, begun.mesh, views, output)


def stored_figures(path: AnyPath) -> dict[str, Any] | None:
    """Returns what a test has found before; None where there is no such thing."""
    try:
        found = json.loads(files.read(path))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "views" in found else None


if __name__ == "__main__":
    job.define_flags()
    cli.run(main)
