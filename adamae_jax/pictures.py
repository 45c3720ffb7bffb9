"""What a masked autoencoder sees, guesses and samples, as pictures a person can read.

`compute` runs the model and gives plain arrays; everything below it is NumPy and Pillow. A clip
becomes a strip (rows of panels, one column per frame) and an animation (panels side by side).
"""

import dataclasses
import functools
import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from adamae_jax.errors import UserError
from adamae_jax.models.transformer import ExampleKeys
from adamae_jax.models.tubelets import ClipGeometry, from_tubelets, to_tubelets
from adamae_jax.pretraining import Pretraining
from adamae_jax.targets import predicted_pixels
from adamae_jax.task import Variables
from adamae_jax.training import files
from adamae_jax.training.files import AnyPath
from adamae_jax.training.partitioning import on_mesh

# Arrays of a few clips, see `compute`.
Panels = dict[str, np.ndarray]
Frames = UInt8[np.ndarray, "T H W 3"]
Picture = UInt8[np.ndarray, "H W 3"]

STRIP_WIDTH, ANIMATION_WIDTH = 1600, 1200  # at most, in pixels
FRAME_MILLISECONDS = 250
SMALLEST_FRAME = 96  # pixels; where a strip's frames would be narrower, some are left out
CAPTION_WIDTH, CAPTION_HEIGHT, HEADER_HEIGHT, GAP = 136, 66, 18, 4
FONT_SIZE, LINE_HEIGHT, BAR_HEIGHT = 13, 16, 8
PAPER, INK = (255, 255, 255), (30, 30, 30)
HIDDEN = 112  # grey of what is not shown
HIGHLIGHT = (64, 224, 255)  # border of visible tokens

# Dark to light, so that the order of values survives a grey print and colour blindness.
COLOURS = (
    (12, 8, 38),
    (72, 14, 106),
    (158, 42, 99),
    (222, 86, 60),
    (250, 164, 42),
    (252, 246, 178),
)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One kind of picture of a clip.

    Attributes:
      title: what it is.
      note: a second line.
      frames: the pictures.
      largest: for a heat map, what its lightest colour stands for; its darkest is 0.
    """

    title: str
    note: str
    frames: Frames
    largest: str | None = None


def compute(
    pretraining: Pretraining,
    variables: Variables,
    video: UInt8[Array | np.ndarray, "b T H W C"],
    keys: ExampleKeys,
    mesh: Mesh | None = None,
    **known: Any,
) -> Panels:
    """Runs the model on a few clips, as in evaluation (no dropout).

    Args:
      pretraining: model, strategy and objective; any strategy will do.
      variables: as `Pretraining.forward` takes them.
      video: the clips.
      keys: one key per clip, for the mask.
      mesh: the devices that the variables lie on, where they are several.
      known: what else the strategy looks at, as `Pretraining.known` gives it.

    Returns:
      ``video`` and ``reconstruction`` uint8 ``[b, T, H, W, C]``; on the grid of tokens
      ``[b, t, h, w]``: ``visible``, ``predicted`` (bool), ``error`` (root mean square, of
      pixels from 0 to 255; 0 where nothing is predicted) and, where the strategy has a
      distribution, ``probability``. The reconstruction of a normalised target is given the true
      tubelet's mean and deviation; visible tokens are copied from the input; what is masked and
      not predicted (tokens that the strategy does not ask for, frames that the model leaves out)
      is grey.
    """
    arrays = _arrays(pretraining, mesh, variables, jnp.asarray(video), keys, known)
    return {"video": np.asarray(video), **{k: np.asarray(v) for k, v in arrays.items()}}


@functools.partial(jax.jit, static_argnames=("pretraining", "mesh"))
def _arrays(
    pretraining: Pretraining,
    mesh: Mesh | None,
    variables: Variables,
    video: UInt8[Array, "b T H W C"],
    keys: ExampleKeys,
    known: dict[str, Any],
) -> dict[str, Array]:
    model = pretraining.model
    geometry, target = model.geometry, model.target_geometry
    forward = functools.partial(pretraining.forward, train=False, **known)
    outcome = (on_mesh(forward, mesh) if mesh else forward)(variables, video, keys)
    mask, shape = outcome.mask, (video.shape[0], geometry.num_tokens)
    rows = jnp.arange(video.shape[0])[:, None]
    valid = True if mask.visible_valid is None else mask.visible_valid
    # Padding may name a token twice: the larger of true and false stays.
    visible = jnp.zeros(shape, bool).at[rows, mask.visible].max(valid)
    predicted = jnp.zeros(shape, bool).at[rows, mask.queries].set(True) & ~visible

    def paint(tokens: Bool[Array, "b n"], over: ClipGeometry) -> Bool[Array, "b t H W C"]:
        return from_tubelets(jnp.repeat(tokens[..., None], over.tubelet_values, -1), over)

    everywhere = jnp.zeros((*shape, target.tubelet_values))
    everywhere = everywhere.at[rows, mask.queries].set(outcome.predictions)
    guess = predicted_pixels(everywhere, video, model, pretraining.objective)
    # Not in the unit of the loss: where that is normalised, what is flat, and guessed to one grey
    # level, would be as bright as a texture that is missed.
    truth = to_tubelets(model.pick_target_frames(video / 255.0), target)
    error = 255.0 * jnp.sqrt(jnp.square(guess - truth).mean(-1))
    grey = HIDDEN / 255.0
    shown = jnp.where(paint(visible, geometry), video / 255.0, grey)
    frames = jnp.asarray(model.target_frames)
    shown = shown.at[:, frames].set(
        jnp.where(paint(predicted, target), from_tubelets(guess, target), shown[:, frames])
    )
    shown = jnp.nan_to_num(jnp.clip(shown, 0.0, 1.0), nan=grey)

    def on_grid(values: Array) -> Array:
        return values.reshape(-1, *geometry.grid)

    arrays = {
        "reconstruction": jnp.rint(shown * 255.0).astype(jnp.uint8),
        "visible": on_grid(visible),
        "predicted": on_grid(predicted),
        "error": on_grid(jnp.where(predicted, error, 0.0)),
    }
    if mask.log_probs is not None:
        arrays["probability"] = on_grid(jnp.exp(mask.log_probs))
    return arrays


def save(panels: Panels, directory: str | AnyPath, prefix: str) -> list[AnyPath]:
    """Writes ``PREFIX_0.png`` (a strip) and ``PREFIX_0.gif`` for the first clip, and so on.

    Images, clips of one frame, have no animation.

    Args:
      panels: what `compute` returns.
      directory: made where it is missing.
      prefix: how the files' names begin.

    Returns:
      The files written.
    """
    place = files.at(directory)
    files.make_directory(place)
    written = []
    for index, clip in enumerate(clips(panels)):
        picture, moving = (place / f"{prefix}_{index}.{kind}" for kind in ("png", "gif"))
        drawn = io.BytesIO()
        Image.fromarray(strip(clip)).save(drawn, "PNG")
        files.write(picture, drawn.getvalue())
        written.append(picture)
        if len(clip["video"]) > 1:
            files.write(moving, animated(animation(clip)))
            written.append(moving)
    return written


def animated(frames: Frames) -> bytes:
    """Returns an endless GIF, with one palette for all frames so that nothing flickers."""
    palette = Image.fromarray(np.concatenate(frames)).quantize(256, Image.Quantize.FASTOCTREE)
    first, *others = (Image.fromarray(frame).quantize(palette=palette) for frame in frames)
    drawn = io.BytesIO()
    timing = {"duration": FRAME_MILLISECONDS, "loop": 0}
    first.save(drawn, "GIF", save_all=True, append_images=others, **timing)
    return drawn.getvalue()


def clips(panels: Panels) -> list[Panels]:
    """Separates the clips of a batch."""
    count = len(panels["video"])
    return [{name: values[i] for name, values in panels.items()} for i in range(count)]


def strip(clip: Panels, width: int = STRIP_WIDTH) -> Picture:
    """A clip's panels as rows, its frames as columns.

    Where frames would become too narrow, only the first of each tubelet (or of several) is drawn:
    masks and heat maps are the same in all of a tubelet's frames.

    Args:
      clip: one of `clips`.
      width: of the picture, at most.
    """
    chosen, room = _columns(clip, width - CAPTION_WIDTH - GAP)
    panels = draw_panels(clip, _display_size(clip["video"].shape, room))
    height, frame_width = panels[0].frames.shape[1:3]
    header = [_text([f"frame {index}"], frame_width, HEADER_HEIGHT) for index in chosen]
    rows = [_row([_blank(CAPTION_WIDTH, HEADER_HEIGHT), *header])]
    for panel in panels:
        caption = _caption(panel, CAPTION_WIDTH, max(height, CAPTION_HEIGHT))
        rows.append(_row([caption, *(panel.frames[index] for index in chosen)]))
    return np.concatenate(rows)


def animation(clip: Panels, width: int = ANIMATION_WIDTH) -> Frames:
    """A clip's panels side by side, frame after frame.

    Args:
      clip: one of `clips`.
      width: of the pictures, at most.
    """
    count = len(draw_panels(clip, (1, 1)))
    panels = draw_panels(clip, _display_size(clip["video"].shape, width // count - GAP))
    frame_width = panels[0].frames.shape[2]
    captions = _row([_caption(panel, frame_width, CAPTION_HEIGHT) for panel in panels])
    rows = [_row(list(frames)) for frames in zip(*(p.frames for p in panels), strict=True)]
    return np.stack([np.concatenate([captions, row]) for row in rows])


def draw_panels(clip: Panels, size: tuple[int, int]) -> list[Panel]:
    """All panels of a clip, drawn at a height and width in pixels.

    Args:
      clip: one of `clips`.
      size: of each frame.
    """
    video = resize(to_rgb(clip["video"]), size)
    shape = video.shape[:3]
    visible = spread(clip["visible"], shape)[..., None]
    hidden = np.uint8(HIDDEN)
    count = f"{int(clip['visible'].sum())} of {clip['visible'].size} tokens"
    panels = [
        Panel("input", "", video),
        Panel("masked input", count, np.where(visible, video, hidden)),
        Panel(
            "reconstruction", "(visible ones copied)", resize(to_rgb(clip["reconstruction"]), size)
        ),
    ]
    error, largest = heat_map(clip["error"])
    error = np.where(clip["predicted"][..., None], error, hidden)
    unit = f"{largest:.2g} of 255"
    panels.append(Panel("error in pixels", "grey: not predicted", spread(error, shape), unit))
    if "probability" in clip:
        # In units of the uniform distribution: 1 is no preference.
        probability, largest = heat_map(clip["probability"] * clip["probability"].size)
        frames = spread(probability, shape)
        panels.append(Panel("sampling probability", "", frames, f"{largest:.2g} x uniform"))
    dimmed = np.where(visible, video, video // 3)
    frames = np.where(
        borders(clip["visible"], shape)[..., None], np.array(HIGHLIGHT, np.uint8), dimmed
    )
    panels.append(Panel("visible tokens", "(the rest dimmed)", frames))
    return panels


def heat_map(values: Float[np.ndarray, "*shape"]) -> tuple[UInt8[np.ndarray, "*shape 3"], float]:
    """Colours from 0 to the largest value, and that value; what is not finite counts as 0."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max())
    return colour_map(values / largest if largest > 0 else values), largest


def colour_map(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Colours for values from 0 (dark) to 1 (light); outside, the colours of the ends."""
    places = np.linspace(0.0, 1.0, len(COLOURS))
    channels = [np.interp(values, places, channel) for channel in np.transpose(COLOURS)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def spread(tokens: Shaped[np.ndarray, "t h w *c"], shape: Sequence[int]) -> np.ndarray:
    """Gives each pixel its token's value: ``[t, h, w, ...]`` to ``[T, H, W, ...]``."""
    for axis, cells in enumerate(_cells(tokens.shape[:3], shape)):
        tokens = np.take(tokens, cells, axis=axis)
    return tokens


def borders(visible: Bool[np.ndarray, "t h w"], shape: Sequence[int]) -> Bool[np.ndarray, "T H W"]:
    """The outermost pixels of visible tokens."""
    _, rows, columns = (_is_edge(cells) for cells in _cells(visible.shape, shape))
    return spread(visible, shape) & (rows[:, None] | columns[None, :])


def resize(frames: Frames, size: tuple[int, int]) -> Frames:
    """Nearest neighbour by whole factors where frames grow, averages where they shrink."""
    if size == frames.shape[1:3]:
        return frames
    grows = size[0] % frames.shape[1] == 0 and size[1] % frames.shape[2] == 0
    method = Image.Resampling.NEAREST if grows else Image.Resampling.BOX
    images = (Image.fromarray(frame).resize((size[1], size[0]), method) for frame in frames)
    return np.stack([np.asarray(image) for image in images])


def to_rgb(video: UInt8[np.ndarray, "T H W C"]) -> Frames:
    """Three channels; a single one is shown as grey.

    Raises:
      UserError: where there are neither one nor three.
    """
    channels = video.shape[-1]
    if channels not in (1, 3):
        raise UserError(f"clips of {channels} channels cannot be drawn: only 1 (grey) or 3 (RGB)")
    return np.repeat(video, 3, axis=-1) if channels == 1 else video


def _cells(grid: Sequence[int], shape: Sequence[int]) -> list[Int[np.ndarray, "_"]]:
    """For each axis, the token that each pixel (or frame) belongs to."""
    return [np.arange(size) * tokens // size for tokens, size in zip(grid, shape[:3], strict=True)]


def _is_edge(cells: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """The first and the last pixel of each token along an axis."""
    changes = np.diff(cells) != 0
    return np.concatenate([[True], changes]) | np.concatenate([changes, [True]])


def _columns(clip: Panels, width: int) -> tuple[range, int]:
    """The frames of a strip and the width that each may take, gap not counted."""
    frames, tubelets = len(clip["video"]), len(clip["visible"])
    tubelet = frames // tubelets
    for step in (1, *range(tubelet, frames + 1, tubelet)):
        chosen = range(0, frames, step)
        room = width // len(chosen) - GAP
        if room >= SMALLEST_FRAME:
            break
    return chosen, room


def _display_size(shape: Sequence[int], room: int) -> tuple[int, int]:
    """Height and width of frames drawn in a given width; larger by whole factors only."""
    _, height, width = shape[:3]
    if width <= room:
        return height * (room // width), width * (room // width)
    return max(1, round(height * room / width)), room


def _row(pictures: Sequence[Picture]) -> Picture:
    """Pictures side by side, with a gap right of and below each."""
    height = max(len(picture) for picture in pictures)
    padded = [
        np.pad(p, ((0, height - len(p) + GAP), (0, GAP), (0, 0)), constant_values=PAPER[0])
        for p in pictures
    ]
    return np.concatenate(padded, axis=1)


def _blank(width: int, height: int) -> Picture:
    return np.full((height, width, 3), PAPER, np.uint8)


def _text(lines: Sequence[str], width: int, height: int) -> Picture:
    """Lines of text from the top left."""
    image = Image.fromarray(_blank(width, height))
    font = ImageFont.load_default(FONT_SIZE)
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((2, number * LINE_HEIGHT), line, fill=INK, font=font)
    return np.array(image)


def _caption(panel: Panel, width: int, height: int) -> Picture:
    """Title and note of a panel and, for a heat map, its colours and what they stand for."""
    if panel.largest is None:
        return _text([panel.title, panel.note], width, height)
    # The bar takes the place of a line between the title and what it stands for.
    picture = _text([panel.title, "", f"0 to {panel.largest}", panel.note], width, height)
    bar = colour_map(np.linspace(0.0, 1.0, min(width, 110) - 4))
    picture[LINE_HEIGHT + 4 : LINE_HEIGHT + 4 + BAR_HEIGHT, 2 : 2 + len(bar)] = bar
    return picture
