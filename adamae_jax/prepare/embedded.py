"""The embedded dataset as a folder."""

from pathlib import Path

from adamae_jax.errors import UserError
from adamae_jax.prepare import output, synthetic, writer
from adamae_jax.prepare.progress import describe


def prepare(name: str, destination: Path, seed: int = 0, num_workers: int = 0) -> None:
    """Writes the embedded dataset.

    Args:
        name: of a size in `synthetic.SIZES`.
        destination: folder to make; if it holds this dataset already, nothing is done.
        seed: of the clips; not negative.
        num_workers: processes that make clips; 0 makes them in this one.

    Raises:
        UserError: bad arguments, or `destination` holds something else.
    """
    if name not in synthetic.SIZES:
        raise UserError(f"--embedded={name} is unknown: choose {' or '.join(synthetic.SIZES)}")
    if seed < 0:
        raise UserError(f"--seed={seed} must be 0 or more")
    arguments = {"embedded": name, "seed": seed}
    if output.already_written(destination, arguments):
        print(f"{destination} already holds this dataset: nothing to do")
        return
    with output.workspace(destination) as workspace:
        builder = writer.MovingObjects(
            config=name, data_dir=workspace, seed=seed, num_workers=num_workers
        )
        built, counts = writer.write(builder)
        output.publish(built, destination, arguments, clips=counts)
    print(f"wrote {destination}: {describe(counts, 'clip')}")
