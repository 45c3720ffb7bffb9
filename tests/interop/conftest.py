"""What all tests of weights share."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from ml_collections import ConfigDict

from adamae_jax import pretrained


@pytest.fixture(autouse=True, scope="session")
def traced_once() -> Iterator[None]:
    """Traces each tiny model once: the shapes of a config are asked for again and again."""
    original, known = pretrained.expected_shapes, dict[str, dict[str, Any]]()

    def expected_shapes(config: ConfigDict) -> dict[str, Any]:
        key = json.dumps(json.loads(config.to_json()), sort_keys=True)
        if key not in known:
            known[key] = original(config)
        return dict(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "expected_shapes", expected_shapes)
        yield
