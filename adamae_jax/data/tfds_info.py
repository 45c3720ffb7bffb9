"""What TFDS says of a dataset in a local folder."""

import os
from pathlib import Path
from typing import Any

from absl import logging

from adamae_jax.errors import UserError

INFO = "dataset_info.json"
FEATURES = "features.json"


class NoDatasetError(UserError):
    """TFDS does not open a folder as a dataset; the message names the file and the reason."""


def read_info(directory: str | os.PathLike[str]) -> Any:
    """TFDS's ``DatasetInfo`` of a folder that ``tfds.builder_from_directory`` opens.

    Raises:
        NoDatasetError: it does not, or the names of the shards cannot be had.
    """
    import tensorflow_datasets as tfds  # slow to import, and workers have no need of it
    from tensorflow_datasets.core.dataset_info import read_from_json

    folder = os.path.expanduser(directory)  # as TFDS itself does
    file = INFO
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity(logging.WARNING)  # TFDS tells of every dataset that it opens
        # Each by itself first, for TFDS's errors do not say which file they speak of.
        read_from_json(Path(folder, INFO))
        file = FEATURES
        tfds.features.FeaturesDict.from_config(folder)
        file = INFO
        info = tfds.builder_from_directory(folder).info
        for split in info.splits.values():
            _ = split.filepaths  # made of a template that is not looked at before
        return info
    except Exception as error:  # TFDS raises many kinds here: a file is damaged or not its own
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [repr(error)])[0]
        raise NoDatasetError(f"{file}: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
