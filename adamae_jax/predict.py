"""Says what is in videos: python -m adamae_jax.predict --checkpoint=PATH VIDEO...

With a classifier, the classes of each video with their scores, as a table and, with --output, as
JSON. With a pretraining checkpoint whose masking network tells where to look (AdaMAE, AutoMAE), a
movie with --output: the video under its saliency, from beginning to end.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from adamae_jax import cli, experiment, initial, saliency
from adamae_jax.errors import UserError
from adamae_jax.loaded import Finetuned, Prediction, Pretrained, parse_views
from adamae_jax.video_files import open_video

PREDICTIONS = "predictions.json"


def define_flags() -> None:
    """Defines this job's options; importing the module does not."""
    text = flags.DEFINE_string
    text("checkpoint", None, "A run, a model or others' weights.", required=True)
    text("output", None, "A folder for the JSON file or the movies.")
    text("views", "5x3", "Clips of each video whose scores are averaged: times x crops.")
    flags.DEFINE_integer("top", 5, "Classes that are listed of each video.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Predicts for each video that is named."""
    values, videos = flags.FLAGS, argv[1:]
    if not videos:
        raise UserError("no video is given: name one or more files behind the options")
    loaded = initial.load(values.checkpoint)
    output = Path(values.output) if values.output else None
    if isinstance(loaded, Finetuned):
        predict_classes(loaded, videos, values.views, values.top, output)
    elif isinstance(loaded, Pretrained):
        draw_saliency(loaded, videos, output)
    else:
        raise UserError(
            f"{values.checkpoint} holds an encoder alone, with neither classes nor a sampler: make "
            "a classifier of it with python -m adamae_jax.finetune --config.init_from"
        )


def predict_classes(
    loaded: Finetuned, videos: Sequence[str], views: str, top: int, output: Path | None
) -> None:
    """Prints the classes of videos, and writes them where that is asked for."""
    parse_views(views)
    found = {video: loaded.predict(video, views=views, top=top) for video in videos}
    for video, predictions in found.items():
        print(table(video, predictions))
    if output is not None:
        text = {
            video: [
                {"label": each.label, "name": each.name, "score": each.score} for each in listed
            ]
            for video, listed in found.items()
        }
        try:
            output.mkdir(parents=True, exist_ok=True)
            (output / PREDICTIONS).write_text(json.dumps(text, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
        logging.info("written: %s", output / PREDICTIONS)


def table(video: str, predictions: Sequence[Prediction]) -> str:
    """Returns a video's classes in lines for people."""
    rows = [f"  {each.score:6.1%}  {each.name or each.label}" for each in predictions]
    return "\n".join([video, *rows])


def draw_saliency(loaded: Pretrained, videos: Sequence[str], output: Path | None) -> None:
    """Writes a movie of each video under its saliency."""
    if output is None:
        raise UserError("give --output=DIR: a pretraining checkpoint makes a movie of each video")
    saliency.check(loaded)
    spec = experiment.clip_spec(loaded.config)
    for video in videos:
        record = open_video(video)
        path = output / f"{Path(video).stem}_saliency.mp4"
        try:
            output.mkdir(parents=True, exist_ok=True)
            found = saliency.of_video(loaded, record, spec)
            saliency.write_movie(path, record, found, spec)
        except OSError as error:
            raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
        print(path)


if __name__ == "__main__":
    define_flags()
    cli.run(main, takes_arguments=True)
