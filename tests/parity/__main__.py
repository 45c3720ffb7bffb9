"""Compares this code with what the authors' own code computed: python -m tests.parity FILE.

The file holds the weights of a small model, an input, and the outputs, losses and gradients that
the authors' PyTorch code computed from them in float32, with the sizes in ``meta``. Or it ends in
``.json``, and holds what their loaders chose (`tests.parity.frames`). Prints one JSON line and
exits with 0 where everything agrees, with 1 where it does not, with 2 where there is nothing to
compare with.
"""

import json
import sys
from collections.abc import Sequence

from adamae_jax.errors import UserError
from tests.parity import comparison, frames


def main(argv: Sequence[str]) -> int:
    """Compares with the file named on the command line."""
    if len(argv) != 1:
        print("usage: python -m tests.parity FILE", file=sys.stderr)
        return 2
    try:
        compare = frames.compare if argv[0].endswith(".json") else comparison.compare
        report = compare(argv[0])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, allow_nan=False))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
