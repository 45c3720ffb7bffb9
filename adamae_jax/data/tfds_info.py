"""What TFDS says of a dataset in a local folder."""

import os
from typing import Any

from absl import logging

from adamae_jax.errors import UserError


class NoDatasetError(UserError):
    """TFDS does not open a folder as a dataset; the message is its reason, in one line."""


def read_info(directory: str | os.PathLike[str]) -> Any:
    """TFDS's ``DatasetInfo`` of a folder that ``tfds.builder_from_directory`` opens.

    Raises:
        NoDatasetError: it does not.
    """
    import tensorflow_datasets as tfds  # slow to import, and workers have no need of it

    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity(logging.WARNING)  # TFDS tells of every dataset that it opens
        return tfds.builder_from_directory(directory).info
    except Exception as error:  # TFDS raises many kinds here: a file is damaged or not its own
        raise NoDatasetError((str(error).splitlines() or [repr(error)])[0]) from error
    finally:
        logging.set_verbosity(verbosity)
