"""Checks a dataset: python -m adamae_jax.prepare verify DIR.

Reads every record of every shard, checks the checksums of files, records and frames, their
structure, decodes a sample, and prints one table. Ends with status 2 where anything is wrong.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
from absl import flags

from adamae_jax import plain_json
from adamae_jax.data import storage
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.examples import Layout
from adamae_jax.data.frames import decode_frames
from adamae_jax.data.payload import StoredFrames
from adamae_jax.data.records import layout_of
from adamae_jax.errors import UserError
from adamae_jax.prepare.output import RECORD_NAME
from adamae_jax.prepare.pool import num_cores, ordered_map
from adamae_jax.prepare.progress import progress, some
from adamae_jax.prepare.shard_files import records
from adamae_jax.prepare.tfds_source import dataset_info


class ShardReport(NamedTuple):
    """What a shard holds.

    Attributes:
        records: how many are sound.
        frames: how many these have.
        num_bytes: of them.
        decoded: of how many records some frames were decoded.
        problems: what is wrong, one sentence each.
    """

    records: int
    frames: int
    num_bytes: int
    decoded: int
    problems: tuple[str, ...]


def check_shard(
    layout: Layout, file_format: str, decode_every: int, shard: tuple[Path, int]
) -> ShardReport:
    """Reads a shard from front to back.

    Args:
        layout: how its records are written down.
        file_format: of the file.
        decode_every: the first of so many records is decoded: its first, middle and last frame.
        shard: its path, and how many records it should have.
    """
    path, expected = shard
    sound = frames = decoded = num_bytes = 0
    number = -1
    problems: list[str] = []
    try:
        for number, payload in enumerate(records(path, file_format)):
            try:
                if isinstance(payload, BadRecordError):
                    raise payload
                record = layout.parse(payload)
                if isinstance(record.frames, StoredFrames):
                    record.frames.fetch(range(len(record.frames)))
                if number % decode_every == 0:
                    last = len(record.frames) - 1
                    chosen = np.unique(np.array([0, last // 2, last]))
                    decode_frames(record.frames, chosen, (record.height, record.width))
                    decoded += 1
            except UserError as error:
                problems.append(f"{path}, record {number}: {error}")
                continue
            sound, frames = sound + 1, frames + len(record.frames)
            num_bytes += len(payload)
        if number + 1 != expected:
            problems.append(f"{path}: {number + 1} records, but dataset_info.json says {expected}")
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
    return ShardReport(sound, frames, num_bytes, decoded, tuple(problems))


def verify(
    directory: str | os.PathLike[str], decode_fraction: float = 0.01, num_workers: int = 0
) -> None:
    """Checks a dataset and prints a table of its splits.

    Args:
        directory: as ``tfds.builder_from_directory`` opens it.
        decode_fraction: of the records, to be decoded; at least one of each shard.
        num_workers: processes that read; 0 reads in this one.

    Raises:
        UserError: anything is wrong.
    """
    if not 0 < decode_fraction <= 1:
        raise UserError(f"--decode_fraction={decode_fraction} must be above 0 and at most 1")
    if storage.is_remote(address := os.fspath(directory)):
        raise UserError(
            f"{address} is an address, but a folder is needed here: mount the bucket and give its "
            "folder, or verify the dataset where it was made"
        )
    directory = Path(directory)
    info = dataset_info(directory, str(directory))
    layout = layout_of(info.features, str(directory))
    check = functools.partial(
        check_shard, layout, info.file_format.value, max(1, round(1 / decode_fraction))
    )
    rows: list[tuple[str, ...]] = [
        ("split", "shards", "records", "frames", "MB", "decoded", "problems")
    ]
    problems = _wrong_files(directory)
    for name, split in info.splits.items():
        shards = list(zip(map(Path, split.filepaths), split.shard_lengths, strict=True))
        checked = ordered_map(check, shards, num_workers)
        reports = list(progress(checked, 0, len(shards), f"shards of {name}"))
        wrong = [problem for report in reports for problem in report.problems]
        sums = np.array([report[:-1] for report in reports], np.int64).reshape(-1, 4).sum(0)
        sound, frames, num_bytes, decoded = map(int, sums)
        counts = len(shards), sound, frames, f"{num_bytes / 1e6:.1f}", decoded, len(wrong)
        rows.append((name, *map(str, counts)))
        problems += wrong
    print(_table(rows))
    if problems:
        raise UserError(
            f"{directory} is damaged: {some(problems)}: copy the dataset again, or remove the "
            "folder and prepare it anew"
        )
    print(f"{directory} is sound")


def _wrong_files(directory: Path) -> list[str]:
    """What differs from the record that the job left, where there is one."""
    path = directory / RECORD_NAME
    if not os.path.lexists(path):
        print(f"note: no {RECORD_NAME}, which `prepare` leaves: labels and sizes are not checked")
        return []
    try:
        record = plain_json.parse(path.read_text())
        sizes, checksums = dict(record["files"]), dict(record["checksums"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{path} cannot be read ({error!r})"]
    wrong = {
        name: f"{directory / name} is missing or does not have its {size} bytes"
        for name, size in sizes.items()
        if not (directory / name).is_file() or (directory / name).stat().st_size != size
    }
    changed = [
        f"{directory / name} does not match its checksum"
        for name, checksum in checksums.items()
        if name not in wrong and _checksum(directory / name) != checksum
    ]
    return [*wrong.values(), *changed]


def _checksum(path: Path) -> int | None:
    """CRC32C of a file; None where it cannot be read."""
    try:
        return int(google_crc32c.value(path.read_bytes()))
    except OSError:
        return None


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the options of this command."""
    flags.DEFINE_string("dataset", None, "folder of the dataset", values)
    flags.DEFINE_float(
        "decode_fraction", 0.01, "share of the records to decode; one of each shard at least",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("num_workers", num_cores(), "processes that read", flag_values=values)


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """Checks the dataset.

    Raises:
        UserError: see `verify`.
    """
    del argv
    if not values.dataset:
        raise UserError("which dataset? python -m adamae_jax.prepare verify DIR")
    if values.num_workers < 0:
        raise UserError(f"--num_workers={values.num_workers} must be 0 or more")
    verify(values.dataset, values.decode_fraction, values.num_workers)
