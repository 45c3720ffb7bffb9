"""JSON files as a kill, a full disk or a person may have left them."""

import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """Returns what a JSON text says.

    Raises:
      ValueError: where it is not JSON, or nested more deeply than Python can read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
