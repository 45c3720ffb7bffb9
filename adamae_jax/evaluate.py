"""Tests a classifier on videos: python -m adamae_jax.evaluate --checkpoint=PATH --views=5x3.

PATH is a fine-tuned run or model, an authors' checkpoint, or a Hugging Face directory. Of each
video, views of several times and places are scored, and their softmax is averaged. Writes the
accuracies, a table of all videos and the confusion of classes as a picture.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags, logging
from jax.sharding import Mesh

from adamae_jax import cli, distributed, peers, results, stored
from adamae_jax.classes import check_classes
from adamae_jax.data.mixture import open_first
from adamae_jax.data.records import Dataset
from adamae_jax.data.temporal import Views
from adamae_jax.errors import UserError
from adamae_jax.loaded import Finetuned, parse_views
from adamae_jax.run_data import evaluation_batches, make_embedded
from adamae_jax.scoring import score
from adamae_jax.training import evaluation, files
from adamae_jax.training.files import AnyPath
from adamae_jax.training.partitioning import create_mesh


def define_flags() -> None:
    """Defines this job's options; importing the module does not."""
    distributed.define_flags()
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("checkpoint", None, "A classifier: a run, a model or others' weights.", required=True)
    text("views", "1x1", "Clips of each video: times x crops, such as 5x3.")
    text("data_dir", None, "The dataset; the run's own, if not given.")
    text("split", None, "Its split; the run's validation split, if not given.")
    text("output", None, "Where the results go; CHECKPOINT/evaluation, if not given.")
    number("batch_size", 32, "Clips at a time, over all devices.", lower_bound=1)
    number("num_videos", 0, "Only the first so many videos; 0 for all.", lower_bound=0)
    number("num_workers", 0, "Worker processes that read.", lower_bound=0)


def main(argv: Sequence[str]) -> None:
    """Evaluates as the flags say, and prints the accuracies."""
    del argv
    values = flags.FLAGS
    views = parse_views(values.views)
    loaded = load_classifier(values.checkpoint)
    data_dir = values.data_dir or loaded.config.data.dir
    if not data_dir:
        raise UserError("the model does not say which data it was trained on: give --data_dir=DIR")
    make_embedded(data_dir)
    dataset = open_first(data_dir, values.split or loaded.config.data.validation_split)
    output = files.at(values.output or files.at(values.checkpoint) / "evaluation")
    if values.output is None and not files.at(values.checkpoint).is_dir():
        raise UserError(f"--checkpoint={values.checkpoint} is a file: say where with --output=DIR")
    config = loaded.config.copy_and_resolve_references()
    config.eval.batch_size, config.eval.num_examples = values.batch_size, values.num_videos
    config.data.num_workers = values.num_workers
    loaded = dataclasses.replace(loaded, config=config)
    with peers.ending_together(output):
        figures = evaluate(loaded, dataset, create_mesh({"data": -1}), views, output)
    if jax.process_index() == 0:
        print(json.dumps(figures, indent=2))


def load_classifier(path: str) -> Finetuned:
    """Loads whatever holds a classifier.

    Raises:
      UserError: where it does not.
    """
    loaded = stored.load(path)
    if not isinstance(loaded, Finetuned):
        raise UserError(
            f"{path} holds no classifier: fine-tune it first, with python -m adamae_jax.finetune "
            f"--config.init_from={path}"
        )
    return loaded


def evaluate(
    loaded: Finetuned, dataset: Dataset, mesh: Mesh, views: Views, output: AnyPath
) -> dict[str, Any]:
    """Scores the videos of a dataset, and writes what was found; all processes call it.

    Args:
      loaded: the classifier; its config's ``data`` and ``eval`` say how videos are read.
      dataset: the videos.
      mesh: the devices.
      views: of each video.
      output: the folder to write in; made where it is missing.

    Returns:
      The accuracies, as they are written; of videos without labels there are none.

    Raises:
      UserError: where the dataset does not fit the classifier, or cannot be read or written.
    """
    check_classes(loaded, dataset)
    if jax.process_index() == 0:
        results.writable(output)
    most = loaded.config.eval.num_examples
    with evaluation_batches(loaded.config, mesh, output, dataset, most=most, views=views) as videos:
        found = score(loaded.task, loaded.variables, videos, mesh)
        unreadable = len(found.unreadable)
        evaluation.check_count(len(found.index) + unreadable, videos.num_examples)
        videos.check(unreadable)
    figures = {
        "step": loaded.step,
        "views": "x".join(map(str, views)),
        "dataset": str(dataset.directory),
        "split": dataset.split,
        **found.figures(),
    }
    if not found.is_labelled:
        logging.warning(
            "no video of %s, split %r, has a label: there are predictions, and no accuracies",
            *(dataset.directory, dataset.split),
        )
    if jax.process_index() == 0:
        try:
            results.write(output, figures, found, loaded.label_names)
        except OSError as error:
            raise UserError(
                f"--output={output} cannot be written: {files.reason(error)}"
            ) from error
        logging.info("written: %s", output)
    return figures


if __name__ == "__main__":
    define_flags()
    cli.run(main)
