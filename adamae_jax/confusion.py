"""Which classes are taken for which, as a picture."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont

from adamae_jax.pictures import COLOURS, INK, PAPER

SIDE = 900  # of the matrix in pixels, about
NAMED = 60  # classes; the names of more would not fit
FONT_SIZE, MARGIN = 12, 10


def draw(counts: Int[np.ndarray, "k k"], label_names: Sequence[str] = ()) -> Image.Image:
    """Draws a confusion matrix: a row for each label, a column for each prediction.

    A cell's colour is its share of the row, from dark (0) to light (1).

    Args:
      counts: videos by label and prediction.
      label_names: written beside rows and columns, where they are few.
    """
    classes = len(counts)
    cell = max(1, SIDE // classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    stops = np.linspace(0, 1, len(COLOURS))
    colours = np.stack(
        [np.interp(shares, stops, channel) for channel in np.transpose(COLOURS)], axis=-1
    )
    pixels = np.kron(colours.astype(np.uint8), np.ones((cell, cell, 1), np.uint8))
    font = ImageFont.load_default(FONT_SIZE)
    names = list(label_names) if 0 < len(label_names) == classes <= NAMED else []
    longest = max((int(font.getlength(name)) for name in names), default=0)
    left = MARGIN + longest + (MARGIN if names else 0)
    top = left + FONT_SIZE  # names of columns stand upright
    picture = Image.new(
        "RGB", (left + classes * cell + MARGIN, top + classes * cell + MARGIN), PAPER
    )
    picture.paste(Image.fromarray(pixels), (left, top))
    pen = ImageDraw.Draw(picture)
    pen.text((MARGIN, MARGIN // 2), "rows: label, columns: prediction", fill=INK, font=font)
    for number, name in enumerate(names):
        middle = number * cell + cell // 2
        pen.text((left - MARGIN, top + middle), name, fill=INK, font=font, anchor="rm")
        upright = Image.new("RGB", (longest + 2, FONT_SIZE + 4), PAPER)
        ImageDraw.Draw(upright).text((0, 0), name, fill=INK, font=font)
        turned = upright.rotate(90, expand=True)
        picture.paste(turned, (left + middle - turned.width // 2, top - turned.height - 4))
    return picture
