"""What all tests of weights share."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def quick(traced_once: None) -> None:
    """See `traced_once`."""
