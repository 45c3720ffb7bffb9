"""RandAugment for clips: a few random operations, the same ones on all frames of a clip.

Sources: RandAugment (arXiv 1909.13719) as timm has it in ``auto_augment.py``, and with it
``rand_augment.py`` of the code released with VideoMAE (arXiv 2203.12602), whose fill colour and
interpolation these are. The operations are Pillow's, on frames of 8 bits. The authors go on in
floating point after them; here the frames are rounded to 8 bits once more, after the crop.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

from adamae_jax.errors import UserError

PROBABILITY = 0.5  # of each operation that is drawn
MAX_LEVEL = 10
FILL = (128, 128, 128)  # VideoMAE gives timm no mean of its images, which would be the colour else
SOLARIZE_ADD_BELOW = 128
_PART = re.compile(r"(m|n|mstd|inc)(\d+(?:\.\d+)?)")
_DEFAULTS = {"m": "10", "n": "2", "mstd": "0", "inc": "0"}  # timm's


class Policy(NamedTuple):
    """What is drawn from.

    Attributes:
        magnitude: mean level of an operation, 0 to `MAX_LEVEL`.
        per_clip: operations drawn for a clip; each is carried out with probability `PROBABILITY`.
        magnitude_std: standard deviation of the level.
        names: of the operations, keys of `OPERATIONS`.
    """

    magnitude: int
    per_clip: int
    magnitude_std: float
    names: tuple[str, ...]


class Operation(NamedTuple):
    """One operation as drawn.

    Attributes:
        name: a key of `OPERATIONS`.
        amount: how much of it; what it counts depends on the operation.
    """

    name: str
    amount: float


@functools.cache
def parse(notation: str) -> Policy:
    """Returns the policy that timm's notation describes.

    Args:
        notation: such as ``rand-m7-n4-mstd0.5-inc1``: magnitude (10 unless said), operations of a
            clip (2), standard deviation of the magnitude (0), and whether all operations become
            stronger with the magnitude (0: no).

    Raises:
        UserError: it is none, or a number is out of range.
    """
    first, *parts = notation.split("-")
    found = [_PART.fullmatch(part) for part in parts]
    values = _DEFAULTS | {match[1]: match[2] for match in found if match}
    sound = (
        first == "rand"
        and all(found)
        and len({match[1] for match in found if match}) == len(parts)
        and all(values[key].isdecimal() for key in ("m", "n", "inc"))
        and int(values["m"]) <= MAX_LEVEL
        and int(values["n"]) >= 1
        and values["inc"] in ("0", "1")
    )
    if not sound:
        raise UserError(
            f"rand_augment is {notation!r}, but must be empty or timm's notation, such as "
            "'rand-m7-n4-mstd0.5-inc1': m (0 to 10), n (at least 1), mstd (a number) and inc "
            "(0 or 1), each at most once"
        )
    names = INCREASING if values["inc"] == "1" else PLAIN
    return Policy(int(values["m"]), int(values["n"]), float(values["mstd"]), names)


def draw(policy: Policy, rng: np.random.Generator) -> tuple[Operation, ...]:
    """Draws the operations of a clip, in the order in which they are carried out."""
    count = policy.per_clip
    chosen = rng.integers(len(policy.names), size=count)
    happens = rng.random(count) < PROBABILITY
    levels = np.clip(rng.normal(policy.magnitude, policy.magnitude_std, count), 0, MAX_LEVEL)
    negative = rng.random(count) < 0.5
    return tuple(
        operation(policy.names[chosen[k]], float(levels[k]), bool(negative[k]))
        for k in range(count)
        if happens[k]
    )


def operation(name: str, level: float, negative: bool = False) -> Operation:
    """Returns an operation at a level.

    Args:
        name: a key of `OPERATIONS`.
        level: its strength, 0 to `MAX_LEVEL`.
        negative: whether it goes the other way, where it has two.
    """
    return Operation(name, OPERATIONS[name].amount(level / MAX_LEVEL, -1 if negative else 1))


def augment(
    pixels: UInt8[np.ndarray, "h w 3"], operations: Sequence[Operation]
) -> UInt8[np.ndarray, "h w 3"]:
    """Carries operations out on one frame, one after the other."""
    if not operations:
        return pixels
    image = Image.fromarray(pixels)
    for name, amount in operations:
        image = OPERATIONS[name].carry_out(image, amount)
    return np.asarray(image)


class _Kind(NamedTuple):
    """An operation that can be drawn.

    Attributes:
        amount: from the level's share of `MAX_LEVEL` and a sign to what ``carry_out`` takes.
        carry_out: does it to an RGB image.
    """

    amount: Callable[[float, int], float]
    carry_out: Callable[[Image.Image, Any], Image.Image]


def _none(share: float, sign: int) -> float:
    return 0.0


def _both_ways(most: float) -> Callable[[float, int], float]:
    return lambda share, sign: sign * (share * most)


def _whole(most: int) -> Callable[[float, int], float]:
    return lambda share, sign: int(share * most)


def _whole_down(most: int) -> Callable[[float, int], float]:
    return lambda share, sign: most - int(share * most)


def _factor(share: float, sign: int) -> float:
    return share * 1.8 + 0.1


def _factor_increasing(share: float, sign: int) -> float:
    return 1.0 + sign * (share * 0.9)


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=FILL)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BICUBIC,
        fillcolor=FILL,
    )


def _solarize_add(image: Image.Image, added: int) -> Image.Image:
    values = [min(255, v + added) if v < SOLARIZE_ADD_BELOW else v for v in range(256)]
    return image.point(values * 3)


def _enhance(kind: Any) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, factor: kind(image).enhance(factor)


_ENHANCED = {
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
}
OPERATIONS: dict[str, _Kind] = {
    "AutoContrast": _Kind(_none, lambda image, _: ImageOps.autocontrast(image)),
    "Equalize": _Kind(_none, lambda image, _: ImageOps.equalize(image)),
    "Invert": _Kind(_none, lambda image, _: ImageOps.invert(image)),
    "Rotate": _Kind(_both_ways(30.0), _rotate),
    "Posterize": _Kind(_whole(4), ImageOps.posterize),
    "PosterizeIncreasing": _Kind(_whole_down(4), ImageOps.posterize),
    "Solarize": _Kind(_whole(256), ImageOps.solarize),
    "SolarizeIncreasing": _Kind(_whole_down(256), ImageOps.solarize),
    "SolarizeAdd": _Kind(_whole(110), _solarize_add),
    **{name: _Kind(_factor, enhance) for name, enhance in _ENHANCED.items()},
    **{
        f"{name}Increasing": _Kind(_factor_increasing, enhance)
        for name, enhance in _ENHANCED.items()
    },
    "ShearX": _Kind(_both_ways(0.3), lambda image, x: _affine(image, 1, x, 0, 0, 1, 0)),
    "ShearY": _Kind(_both_ways(0.3), lambda image, y: _affine(image, 1, 0, 0, y, 1, 0)),
    "TranslateXRel": _Kind(
        _both_ways(0.45), lambda image, x: _affine(image, 1, 0, x * image.width, 0, 1, 0)
    ),
    "TranslateYRel": _Kind(
        _both_ways(0.45), lambda image, y: _affine(image, 1, 0, 0, 0, 1, y * image.height)
    ),
}
_INCREASE = {"Posterize", "Solarize", *_ENHANCED}
PLAIN = tuple(name for name in OPERATIONS if not name.endswith("Increasing"))
INCREASING = tuple(f"{name}Increasing" if name in _INCREASE else name for name in PLAIN)
