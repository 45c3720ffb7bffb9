"""Moving objects: short labelled clips made from a seed, for a demo that downloads nothing.

Textured objects move over a smooth background that stands still (in some clips the camera pans a
little). The label is the motion, which all objects of a clip share, and no single frame gives it
away: every clip lives on a torus (what leaves the frame on one side comes back on the other), so
that positions and angles are equally distributed in every frame, whatever the class; sizes cover
one common range, which objects that approach or recede cross in opposite directions.

Made for adaptive masking, which samples tokens in proportion to their reconstruction error. The
error is measured on tubelets normalised by their own mean and standard deviation. So objects carry
random high-contrast textures a few pixels fine (hard to predict), and backgrounds are colour
gradients, smooth but nowhere flat: normalising a flat tubelet would blow up the noise of its
encoding into something nobody can predict.

Everything is a closed form of the pixel's coordinates: no image is ever resampled.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8

MOTIONS = ("left", "right", "up", "down", "clockwise", "counterclockwise", "approach", "recede")
SPLITS = ("train", "validation")
RATE = 25.0  # frames per second that the clips claim to have
MASK_STRIDE = 4  # pixels of a frame, along each side, that share one pixel of its foreground mask

_DIRECTIONS = {"left": np.pi, "right": 0.0, "up": -np.pi / 2, "down": np.pi / 2}
_TURNS = {"clockwise": 1.0, "counterclockwise": -1.0}
_GROWTHS = {"approach": 1.0, "recede": -1.0}
_WAVES = 3  # plane waves that a texture is the sum of


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the dataset is.

    Attributes:
        side: height and width of a frame in pixels; a multiple of `MASK_STRIDE`.
        num_frames: frames of a clip.
        clips: number of clips of each split.
    """

    side: int
    num_frames: int
    clips: Mapping[str, int]


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "demo": Size(side=64, num_frames=20, clips={"train": 1536, "validation": 256}),
        "medium": Size(side=64, num_frames=20, clips={"train": 16384, "validation": 1024}),
        "large": Size(side=128, num_frames=32, clips={"train": 20000, "validation": 1000}),
    }
)


class Clip(NamedTuple):
    """One clip, with what is known of it.

    Attributes:
        frames: RGB frames.
        foreground: share of each cell of `MASK_STRIDE` x `MASK_STRIDE` pixels that objects cover,
            0 (none) to 255 (all of it).
        label: index into `MOTIONS`.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    foreground: UInt8[np.ndarray, "t h//4 w//4"]
    label: int


@dataclasses.dataclass(frozen=True)
class _Object:
    """Where one object is in every frame, and how it looks; lengths in pixels, angles in radians.

    An object's own coordinates have their origin at its centre and are as large as frame pixels
    where `scale` is 1.
    """

    centre: Float[np.ndarray, "t 2"]  # x, y; on the torus, so any real number
    angle: Float[np.ndarray, " t"]  # clockwise as seen on the screen, since y points down
    scale: Float[np.ndarray, " t"]
    corners: int  # of the outline
    polygon: bool  # straight sides; otherwise a round outline with as many lobes
    radius: float  # of the outline's circumscribed circle
    stretch: float  # width over height
    waves: Float[np.ndarray, "k 2"]  # wave vectors of the texture, radians per pixel
    mixing: Float[np.ndarray, "2*k 3"]  # what sine and cosine of each wave add to each channel
    colour: Float[np.ndarray, " 3"]  # mean colour


def make_clip(size: Size, seed: int, split: str, index: int) -> Clip:
    """Makes one clip: a pure function of its arguments, independent of all other clips.

    Args:
        size: frame size and clip length.
        seed: not negative; datasets of different seeds have no clip in common.
        split: one of `SPLITS`.
        index: position of the clip in its split; it also fixes the label, ``index % 8``, so that
            classes are balanced.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    label = index % len(MOTIONS)
    clip_time = np.linspace(-0.5, 0.5, size.num_frames)  # of the whole clip, 0 in its middle
    pan = _draw_pan(rng, size.side) * clip_time[:, None]
    canvas = _background(rng, size, pan)
    uncovered = np.ones(canvas.shape[:3], np.float32)
    for thing in _draw_objects(rng, size.side, MOTIONS[label], clip_time, pan):
        _paint(canvas, uncovered, thing)
    cells = size.side // MASK_STRIDE
    covered = 1 - uncovered.reshape(-1, cells, MASK_STRIDE, cells, MASK_STRIDE).mean((2, 4))
    return Clip(_to_bytes(canvas), _to_bytes(255 * covered), label)


def _to_bytes(values: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    return np.clip(values + np.float32(0.5), 0, 255).astype(np.uint8)


def _draw_pan(rng: np.random.Generator, side: int) -> Float[np.ndarray, " 2"]:
    """How far the scene drifts over the whole clip, as a vector; most cameras stand still."""
    pans = rng.random() < 0.3
    direction = rng.uniform(0, 2 * np.pi)
    distance = pans * side * rng.uniform(0.05, 0.15)
    return distance * np.array([np.cos(direction), np.sin(direction)])


def _background(
    rng: np.random.Generator, size: Size, pan: Float[np.ndarray, "t 2"]
) -> Float32[np.ndarray, "t h w 3"]:
    """A gradient per channel, slightly curved and wavy, too steep to be flat anywhere."""
    steepness = rng.uniform(110, 150, 3) * rng.choice([-1, 1], 3)  # levels per frame side
    direction = rng.uniform(0, 2 * np.pi) + rng.uniform(-0.5, 0.5, 3)
    gradient = steepness * np.stack([np.cos(direction), np.sin(direction)])
    curvature = rng.uniform(-15, 15, (2, 3))
    wave_direction = rng.uniform(0, 2 * np.pi)
    frequency = 2 * np.pi * rng.uniform(0.6, 0.9)
    wave = frequency * np.array([np.cos(wave_direction), np.sin(wave_direction)])
    ripples = rng.uniform(-3.5, 3.5, (2, 3))
    middle = rng.uniform(118, 138, 3)

    moves = bool(pan.any())  # a still scene is drawn once
    shift = (pan if moves else pan[:1]).astype(np.float32) / size.side
    pixels = (np.arange(size.side, dtype=np.float32) + 0.5) / size.side - 0.5
    x, y = pixels - shift[:, :1], pixels - shift[:, 1:]
    across = _slope(x, gradient[0], curvature[0])[:, None, :]
    down = _slope(y, gradient[1], curvature[1])[:, :, None] + middle.astype(np.float32)
    crests = np.float32(wave[0]) * x[:, None, :] + np.float32(wave[1]) * y[:, :, None]
    scene = np.stack([np.sin(crests), np.cos(crests)], axis=-1) @ ripples.astype(np.float32)
    scene += across
    scene += down
    return scene if moves else np.repeat(scene, size.num_frames, axis=0)


def _slope(
    position: Float32[np.ndarray, "t n"],
    gradient: Float[np.ndarray, " 3"],
    curvature: Float[np.ndarray, " 3"],
) -> Float32[np.ndarray, "t n 3"]:
    along = position[..., None]
    return (gradient * along + curvature * along**2).astype(np.float32)


def _draw_objects(
    rng: np.random.Generator,
    side: int,
    motion: str,
    clip_time: Float[np.ndarray, " t"],
    pan: Float[np.ndarray, "t 2"],
) -> list[_Object]:
    """One to three objects that move alike, each with its own speed, size, outline and texture."""
    count = int(rng.integers(1, 4))
    # Sizes vary by more than a clip's growth, so that a size does not tell growth.
    shares = rng.uniform(0.4, 1.6, count)
    # One object alone stays smaller than several together: it must fit into the frame when large.
    area = rng.uniform(0.13, 0.32) * (0.7 if count == 1 else 1.0) * side**2
    return [
        _draw_object(rng, side, motion, clip_time, pan, area * share)
        for share in shares / shares.sum()
    ]


def _draw_object(
    rng: np.random.Generator,
    side: int,
    motion: str,
    clip_time: Float[np.ndarray, " t"],
    pan: Float[np.ndarray, "t 2"],
    area: float,
) -> _Object:
    # Everything is drawn for every class, so that classes differ in nothing but their motion.
    travel = side * rng.uniform(0.3, 0.65)  # over the clip
    turn = rng.uniform(np.radians(75), np.radians(180))
    growth = np.log(rng.uniform(1.4, 1.8))
    slant = rng.uniform(-0.3, 0.3)
    start, angle, frozen = (
        rng.uniform(0, side, 2),
        rng.uniform(0, 2 * np.pi),
        rng.uniform(-0.5, 0.5),
    )

    direction = _DIRECTIONS.get(motion, 0.0) + slant
    step = travel * np.array([np.cos(direction), np.sin(direction)]) * (motion in _DIRECTIONS)
    # Objects that keep their size are as large as others are at some moment of their clip.
    moment = _GROWTHS[motion] * clip_time if motion in _GROWTHS else frozen + 0 * clip_time
    corners, polygon = int(rng.integers(3, 6)), bool(rng.random() < 0.5)
    # The relation of area to radius: of a regular polygon, or of r = (1 + 0.2 cos(n phi)) / 1.2.
    full = corners / 2 * np.sin(2 * np.pi / corners) if polygon else np.pi * 1.02 / 1.44
    stretch = np.exp(rng.uniform(-0.25, 0.25))
    return _Object(
        centre=start + step * clip_time[:, None] + pan,
        angle=angle + _TURNS.get(motion, 0.0) * turn * clip_time,
        scale=np.exp(growth * moment),
        corners=corners,
        polygon=polygon,
        radius=float(np.sqrt(area / full)),
        stretch=float(stretch),
        waves=_draw_waves(rng, side),
        mixing=rng.uniform(-75, 75, (2 * _WAVES, 3)),
        colour=rng.uniform(60, 195, 3),
    )


def _draw_waves(rng: np.random.Generator, side: int) -> Float[np.ndarray, "k 2"]:
    direction = rng.uniform(0, 2 * np.pi, _WAVES)
    length = side * rng.uniform(0.08, 0.18, _WAVES)
    return (2 * np.pi / length * np.stack([np.cos(direction), np.sin(direction)])).T


def _paint(
    canvas: Float32[np.ndarray, "t h w 3"], uncovered: Float32[np.ndarray, "t h w"], thing: _Object
) -> None:
    """Draws an object over what is there, in place, with edges one pixel soft."""
    side = canvas.shape[1]
    reach = thing.radius * max(thing.stretch, 1 / thing.stretch) ** 0.5 * thing.scale.max()
    box = min(2 * int(np.ceil(reach + 1)) + 1, side)
    corner = np.floor(thing.centre).astype(int) - box // 2  # [t, 2]
    pixel = corner[:, :, None] + np.arange(box)  # [t, 2, box]: x, y before they are wrapped
    offset = (pixel + 0.5 - thing.centre[:, :, None]).astype(np.float32)
    x, y = _own_coordinates(thing, offset)
    inside = -_outline(thing, x, y) * thing.scale.astype(np.float32)[:, None, None]
    touched = inside > -0.5
    alpha = np.minimum(inside[touched] + 0.5, 1)

    row, column = pixel[:, 1] % side, pixel[:, 0] % side
    frame = np.arange(len(canvas))[:, None, None]
    where = ((frame * side + row[:, :, None]) * side + column[:, None, :])[touched]
    colours = canvas.reshape(-1, 3)  # views, so that painting them paints the canvas
    texture = _texture(thing, x[touched], y[touched])
    below = np.take(colours, where, axis=0)
    colours[where] = below + alpha[:, None] * (texture - below)
    uncovered.reshape(-1)[where] *= 1 - alpha


def _own_coordinates(
    thing: _Object, offset: Float32[np.ndarray, "t 2 b"]
) -> tuple[Float32[np.ndarray, "t b b"], Float32[np.ndarray, "t b b"]]:
    """Turns offsets from the centre along the frame's x and y into the object's coordinates."""
    dx, dy = offset[:, 0, None, :], offset[:, 1, :, None]
    cos = (np.cos(thing.angle) / thing.scale).astype(np.float32)[:, None, None]
    sin = (np.sin(thing.angle) / thing.scale).astype(np.float32)[:, None, None]
    return cos * dx + sin * dy, cos * dy - sin * dx


def _outline(
    thing: _Object, x: Float32[np.ndarray, "t b b"], y: Float32[np.ndarray, "t b b"]
) -> Float32[np.ndarray, "t b b"]:
    """About the distance to the outline, in the object's pixels, negative within."""
    x, y = x / np.float32(thing.stretch**0.5), y * np.float32(thing.stretch**0.5)
    if thing.polygon:
        angles = 2 * np.pi / thing.corners * np.arange(thing.corners)
        sides = [np.float32(np.cos(a)) * x + np.float32(np.sin(a)) * y for a in angles]
        inner_radius = thing.radius * np.cos(np.pi / thing.corners)
        return np.maximum.reduce(sides) - np.float32(inner_radius)
    lobes = 1 + np.float32(0.2) * np.cos(thing.corners * np.arctan2(y, x))
    return np.hypot(x, y) - np.float32(thing.radius / 1.2) * lobes


def _texture(
    thing: _Object, x: Float32[np.ndarray, " n"], y: Float32[np.ndarray, " n"]
) -> Float32[np.ndarray, "n 3"]:
    """Interfering waves, each with a phase and height of its own in every channel.

    The first wave bends the others, so that the pattern does not repeat and cannot be continued
    from a part of it.
    """
    phases = np.stack([x, y], axis=-1) @ thing.waves.T.astype(np.float32)
    phases[:, 1:] += np.float32(1.5) * np.sin(phases[:, :1])
    waves = np.concatenate([np.sin(phases), np.cos(phases)], axis=-1)
    mixed = waves @ thing.mixing.astype(np.float32)
    mixed += thing.colour.astype(np.float32)
    return np.clip(mixed, 0, 255, out=mixed)
