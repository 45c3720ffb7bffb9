"""Says what is in videos: python -m adamae_jax.predict --checkpoint=PATH VIDEO...

With a classifier, the classes of each video with their scores, as a table or, with --json, as a
line of JSON, and with --output as a JSON file. With a pretraining checkpoint whose masking network
tells where to look (AdaMAE, AutoMAE), a movie with --output: the video under its saliency, from
beginning to end. A video that cannot be read is told and left out; the status is 2 then.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from adamae_jax import cli, experiment, saliency, stored
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
    flags.DEFINE_bool("json", False, "Print a line of JSON for each video, and no table.")
    flags.DEFINE_integer("top", 5, "Classes that are listed of each video.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Predicts for each video that is named."""
    values, videos = flags.FLAGS, argv[1:]
    if not videos:
        raise UserError("no video is given: name one or more files behind the options")
    loaded = stored.load(values.checkpoint)
    output = Path(values.output) if values.output else None
    if isinstance(loaded, Finetuned):
        predict_classes(loaded, videos, values.views, values.top, output, as_json=values.json)
    elif isinstance(loaded, Pretrained):
        draw_saliency(loaded, videos, output)
    else:
        raise UserError(
            f"{values.checkpoint} holds an encoder alone, with neither classes nor a sampler: make "
            "a classifier of it with python -m adamae_jax.finetune --config.init_from"
        )


def each(videos: Sequence[str], work: Callable[[str], None]) -> str:
    """Does something with one video after the other, and warns of those that cannot be read.

    Returns:
      What was wrong with some, for the end; "" where all were read.
    """
    wrong = []
    for video in videos:
        try:
            work(video)
        except UserError as error:
            logging.warning("left out: %s", error)
            wrong.append(str(error))
    return f"{len(wrong)} of {len(videos)} videos are left out: {wrong[0]}" if wrong else ""


def predict_classes(
    loaded: Finetuned,
    videos: Sequence[str],
    views: str,
    top: int,
    output: Path | None,
    *,
    as_json: bool = False,
) -> None:
    """Prints the classes of each video, and writes them where that is asked for.

    Raises:
      UserError: at the end, where a video could not be read; or nothing can be written.
    """
    parse_views(views)
    found: dict[str, list[dict[str, Any]]] = {}

    def predict(video: str) -> None:
        predictions = loaded.predict(video, views=views, top=top)
        found[video] = [one._asdict() for one in predictions]
        line = json.dumps({"video": video, "classes": found[video]})
        print(line if as_json else table(video, predictions), flush=True)

    wrong = each(videos, predict)
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
            (output / PREDICTIONS).write_text(json.dumps(found, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
        logging.info("written: %s", output / PREDICTIONS)
    if wrong:
        raise UserError(wrong)


def table(video: str, predictions: Sequence[Prediction]) -> str:
    """Returns a video's classes in lines for people."""
    rows = [f"  {each.score:6.1%}  {each.name or each.label}" for each in predictions]
    return "\n".join([video, *rows])


def draw_saliency(loaded: Pretrained, videos: Sequence[str], output: Path | None) -> None:
    """Writes a movie of each video under its saliency; raises as `predict_classes`."""
    if output is None:
        raise UserError("give --output=DIR: a pretraining checkpoint makes a movie of each video")
    saliency.check(loaded)
    spec = experiment.clip_spec(loaded.config)

    def draw(video: str) -> None:
        record = open_video(video)
        path = output / f"{Path(video).stem}_saliency.mp4"
        saliency.write_movie(path, record, saliency.of_video(loaded, record, spec), spec)
        print(path, flush=True)

    try:
        output.mkdir(parents=True, exist_ok=True)
        wrong = each(videos, draw)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
    if wrong:
        raise UserError(wrong)


if __name__ == "__main__":
    define_flags()
    cli.run(main, takes_arguments=True)
