"""What a run measures: ``metrics.jsonl`` for machines, TensorBoard event files for people.

``metrics.jsonl`` has one JSON object a line, ``{"step": 12, "loss": 0.6931471805599453}``, with the
caller's names and the shortest digits that give the same float64 back. JSON has no NaN and no
infinity: they are written as null, and the first one of each name is logged as a warning.

Every line and event is handed to the operating system before `RunMetrics.write` returns
(TensorFlow's writer flushes after each of clu's calls), so that a killed process loses none. In a
bucket, where nothing can be added to an object, lines and events go into it once a minute and with
`RunMetrics.flush`. For a resumed run to have the lines of an uninterrupted one, write all of step k
and flush before the checkpoint of step k is saved.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

import jax
import numpy as np
from absl import logging

from adamae_jax import plain_json
from adamae_jax.errors import UserError
from adamae_jax.training import files
from adamae_jax.training.files import AnyPath

if TYPE_CHECKING:
    from clu import metric_writers

FILE_NAME = "metrics.jsonl"
# Figures of the clock and the machine: two runs that are the same differ in them.
TIMINGS = (
    *("clips_per_second", "data_wait_share", "data_wait_seconds", "compute_seconds"),
    *("checkpoint_seconds", "evaluation_seconds", "computed_seconds", "seconds"),
    *("device_memory_gb", "device_memory_peak_gb"),
)


class RunMetrics:
    """Writes scalars, images and texts of one run to its working directory, from process 0 only.

    Opening it removes the lines that an earlier process wrote after ``start_step``: those steps are
    done again. Event files are left as they are: TensorBoard shows the last event of a step. The
    other processes write nothing and import no TensorFlow.
    """

    def __init__(
        self, workdir: str | AnyPath, *, start_step: int, tensorboard: bool = True
    ) -> None:
        """Args:
        workdir: Where ``metrics.jsonl`` and the event files are, or will be.
        start_step: The restored step; 0 for a run from the beginning, which removes the records
          of step 0 as well.
        tensorboard: Whether to write event files; without them TensorFlow is not imported,
          which takes 3 to 5 seconds.

        Raises:
          UserError: The directory cannot be written.
        """
        self._writer: metric_writers.SummaryWriter | None = None
        self._file: files.GrowingFile | None = None
        self._events: files.GrowingDirectory | None = None
        self._warned: set[str] = set()
        if jax.process_index() != 0:
            return
        self._path = files.at(workdir) / FILE_NAME
        last_kept = start_step if start_step > 0 else -1
        try:
            files.make_directory(self._path.parent)
            truncate_lines(self._path, last_kept)
            self._file = files.growing(self._path)
        except OSError as error:
            raise self._unwritable(error) from error
        if tensorboard:
            self._events = files.GrowingDirectory(self._path.parent)
            self._writer = _summary_writer(self._events.local)

    def __enter__(self) -> "RunMetrics":
        """Returns itself; leaving the ``with`` block closes it."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes; see `close`."""
        self.close()

    def write(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Appends one line, and the same numbers (as float32) to the event file, under `tag`.

        Args:
          step: Training step that the numbers belong to.
          scalars: Python, NumPy or JAX scalars by name; ``step`` is not a name.

        Raises:
          ValueError: A name is ``step``, or the files have been closed.
          UserError: The line cannot be written (a full disk, say).
        """
        if self._file is None:
            return
        if "step" in scalars:
            raise ValueError("a scalar cannot be named 'step': that is the line's own field")
        numbers = {name: _python_number(value) for name, value in scalars.items()}
        finite = {name: self._finite_or_none(step, name, n) for name, n in numbers.items()}
        line = json.dumps({"step": int(step), **finite}, allow_nan=False) + "\n"
        try:
            self._file.append(line.encode())
        except OSError as error:
            raise self._unwritable(error) from error
        if self._writer is not None:
            self._writer.write_scalars(int(step), {tag(name): n for name, n in numbers.items()})

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Puts RGB images, one or several under each name, into the event file.

        Args:
          step: Training step that the images belong to.
          images: By name in TensorBoard, uint8 [H, W, 3] or [N, H, W, 3], 0 to 255.

        Raises:
          ValueError: An image is not uint8 of shape [H, W, 3] or [N, H, W, 3].
        """
        for name, image in images.items():
            if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] != 3:
                raise ValueError(
                    f"image {name!r} is {image.dtype}{list(image.shape)}, expected uint8 of shape "
                    "[H, W, 3] or [N, H, W, 3]"
                )
        if self._writer is not None:
            self._writer.write_images(int(step), images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Puts texts (TensorBoard reads them as Markdown) into the event file."""
        if self._writer is not None:
            self._writer.write_texts(int(step), texts)

    def flush(self) -> None:
        """Makes what was written safe: on the disk itself (a power cut asks for that), or sent.

        Raises:
          UserError: ``metrics.jsonl`` cannot be written; of the events a warning tells.
        """
        self._send_events()
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                raise self._unwritable(error) from error

    def close(self) -> None:
        """Closes both files. May be called twice.

        Raises:
          UserError: what was not safe yet cannot be written.
        """
        if self._writer is not None:
            self._writer.close()
        self._send_events()
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                raise self._unwritable(error) from error

    def _send_events(self) -> None:
        """Brings the events into a bucket; that they are missing there ends no run."""
        if self._events is not None:
            try:
                self._events.flush()
            except OSError as error:
                logging.warning("events cannot be written: %s", files.reason(error))

    def _finite_or_none(self, step: int, name: str, number: int | float) -> int | float | None:
        if math.isfinite(number):
            return number
        if name not in self._warned:
            self._warned.add(name)
            logging.warning("step %d: %s is %s, null in %s", step, name, number, self._path)
        return None

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"cannot write metrics to {self._path}: {files.reason(error)}")


def tag(name: str) -> str:
    """Returns the name in TensorBoard, which shows what has one word before the slash together."""
    if name.startswith("eval_"):
        return name.replace("_", "/", 1)
    return f"{'time' if name in TIMINGS else 'train'}/{name}"


def truncate_lines(path: AnyPath, last_step: int) -> None:
    """Removes the lines of a ``metrics.jsonl`` that belong to steps after ``last_step``.

    A last line without its end (the writer was killed, or the disk full) is removed silently;
    another line that is not a JSON object with a step is removed with a warning. The file is
    replaced at once or not at all; a missing one is left missing.
    """
    try:
        data = files.read(path)
    except FileNotFoundError:
        return
    *lines, torn = data.split(b"\n")
    kept = []
    for number, line in enumerate(lines, start=1):
        found = parse_line(line)
        if found is None:
            logging.warning("%s: line %d is not a JSON object with a step: removed", path, number)
        elif found["step"] <= last_step:
            kept.append(line + b"\n")
    if torn or len(kept) < len(lines):
        files.write(path, b"".join(kept))


def parse_line(line: str | bytes) -> dict[str, Any] | None:
    """Returns a line's numbers (None for one that was not finite); None for what is no line."""
    try:
        found = plain_json.parse(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int:
        return None
    is_plain = all(value is None or type(value) in (int, float) for value in found.values())
    return found if is_plain else None


def _python_number(value: SupportsFloat) -> int | float:
    """An integer stays an integer; everything else becomes a float64."""
    array = np.asarray(value)
    return int(array) if array.dtype.kind in "iu" and array.ndim == 0 else float(array)


def _summary_writer(directory: Path) -> "metric_writers.SummaryWriter":
    # TensorFlow tells of its start on stderr; and it must leave the accelerators to JAX.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf
    from clu import metric_writers

    tf.config.set_visible_devices([], "GPU")
    return metric_writers.SummaryWriter(str(directory))
