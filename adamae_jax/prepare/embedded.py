"""The embedded datasets of moving objects, made where they are needed."""

import functools
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from adamae_jax.data import storage
from adamae_jax.errors import UserError
from adamae_jax.prepare import examples, synthetic
from adamae_jax.prepare.build import Engine, Output, Plan, build
from adamae_jax.prepare.pool import num_cores
from adamae_jax.prepare.sources import Item
from adamae_jax.prepare.write import Result

# Folders that configs name, by the sizes of `synthetic.SIZES` that belong in them.
_FOLDERS = {f"moving_objects_{name}": name for name in synthetic.SIZES}


def ensure(directory: str | os.PathLike[str]) -> None:
    """Makes the embedded dataset that a directory's name asks for, unless something is there.

    ``moving_objects_demo``, ``_medium`` and ``_large`` are such names; a directory of any other
    name, or in a bucket, is left as it is. One line says what is made. Of several processes that
    share the directory, one alone may call this.

    Args:
        directory: where a config expects its data.

    Raises:
        UserError: the dataset cannot be written.
    """
    path = Path(directory)
    name = _FOLDERS.get(path.name)
    if name is None or storage.is_remote(directory) or any(path.glob("*")):
        return
    print(f"{path} is missing: making the embedded dataset {name!r}", flush=True)
    prepare(name, path.absolute(), num_workers=num_cores())


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
        raise UserError(f"--embedded={name} is unknown: choose {', '.join(synthetic.SIZES)}")
    if seed < 0:
        raise UserError(f"--seed={seed} must be 0 or more")
    plan = Plan(
        name="moving_objects",
        thing="clip",
        source=f"the embedded dataset {name!r}",
        items=_items(name),
        read=functools.partial(make_record, name, seed),
        features=examples.features(synthetic.MOTIONS, foreground=True),
        arguments={"embedded": name, "seed": seed},
    )
    build(plan, Output(destination), Engine(num_workers))


def _items(name: str) -> tuple[Item, ...]:
    """Returns the clips of all splits, in an order that mixes the classes.

    It is the order in which TFDS stores examples of these names, so that training sees the clips
    as the published figures of the demo did.
    """
    items = [
        Item(f"{split}-{index:06d}", "", split=split, span=(index, 1))
        for split, count in synthetic.SIZES[name].clips.items()
        for index in range(count)
    ]

    def place(item: Item) -> tuple[str, bytes]:
        split = str(item.split)
        return split, hashlib.md5((split + item.id).encode(), usedforsecurity=False).digest()

    return tuple(sorted(items, key=place))


def make_record(name: str, seed: int, item: Item) -> Result:
    """Makes the record of one clip.

    Args:
        name: of the size.
        seed: of the dataset.
        item: says the split, and in its span the number of the clip in it.
    """
    assert item.split is not None and item.span is not None
    fields = encode_clip((name, seed, item.split, item.span[0]))
    return Result(examples.serialize(examples.make_example(**fields)), None)


def encode_clip(address: tuple[str, int, str, int]) -> dict[str, Any]:
    """Makes one clip and encodes it; returns the arguments of `examples.make_example`.

    Args:
        address: name of the size, seed, split, index in the split.
    """
    name, seed, split, index = address
    size = synthetic.SIZES[name]
    clip = synthetic.make_clip(size, seed, split, index)
    return {
        "identity": f"{split}-{index:06d}",
        # Little compression: what it adds to the pixels must stay small against their gradients.
        "frames": [
            simplejpeg.encode_jpeg(frame, quality=95, colorsubsampling="444")
            for frame in clip.frames
        ],
        "rate": synthetic.RATE,
        "height": size.side,
        "width": size.side,
        "label": clip.label,
        "foreground": _encode_masks(clip.foreground),
    }


def _encode_masks(masks: UInt8[np.ndarray, "t h w"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(masks.reshape(-1, masks.shape[-1])).save(file, format="PNG", compress_level=3)
    return file.getvalue()
