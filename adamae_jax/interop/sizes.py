"""Sizes of a model, read off the names and shapes of its weights."""

import math
import re
from collections.abc import Mapping

from adamae_jax.errors import UserError
from adamae_jax.interop import published
from adamae_jax.interop.given import Given
from adamae_jax.interop.safetensors_files import StateDict


class Sizes:
    """Reads sizes off a state dict; what is not there is a `UserError`.

    Attributes:
      state: the weights under the authors' names.
      given: what is known beside them; it goes before what would be taken from published models.
      remarks: what was taken from them, for the user to know.
    """

    def __init__(self, state: StateDict, given: Given):
        self.state, self.given = state, given
        self.remarks: list[str] = []

    def has(self, *beginnings: str) -> bool:
        """Whether any name begins with one of these."""
        return any(name.startswith(beginnings) for name in self.state)

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of an array that must be there, of so many axes, none of them empty."""
        if name not in self.state:
            raise UserError(f"the weights lack {name}: without it the model cannot be known")
        shape = self.state[name].shape
        if len(shape) != rank or 0 in shape:
            raise UserError(f"{name} has the shape {shape}: it should have {rank} axes")
        return shape

    def depth(self, prefix: str) -> int:
        """How many blocks there are under a prefix such as ``encoder.blocks.``."""
        pattern = re.compile(re.escape(prefix) + r"(\d{1,6})\.(?:norm|attn|mlp|gamma)")
        matches = (pattern.match(name) for name in self.state)
        found = {int(match[1]) for match in matches if match}
        for layer in range(len(found)):
            if layer not in found:
                raise UserError(f"the weights lack {prefix}{layer}, and have blocks after it")
        return len(found)

    def blocks(
        self, prefix: str, flag: str, given: int | None, known: Mapping[tuple[int, int], int]
    ) -> dict[str, int]:
        """Width, depth and heads of a stack.

        Args:
          prefix: in front of the blocks' numbers.
          flag: by which a user gives the heads.
          given: the heads, where they are known.
          known: the heads of published stacks, by width and depth.
        """
        depth = self.depth(prefix)
        (width,) = self.shape(f"{prefix}0.norm1.weight", 1)
        heads = given or known.get((width, depth))
        if heads is None:
            raise UserError(
                f"{depth} blocks of width {width} could have any number of attention heads: give "
                f"--{flag}"
            )
        if given is None:
            self.remarks.append(f"{flag} {heads}: as in the published model of this size")
        check_heads(flag, heads, width)
        return {"width": width, "depth": depth, "num_heads": heads}

    def mlp_ratio(self, *prefixes: str) -> float:
        """The ratio that gives the hidden widths of all these stacks, if one does."""
        ratios = []
        for prefix in prefixes:
            hidden, width = self.shape(f"{prefix}0.mlp.fc1.weight", 2)
            ratio = hidden / width
            # int(width * ratio) is the hidden width: it must not be one less by rounding.
            ratios.append(ratio if width * ratio >= hidden else math.nextafter(ratio, math.inf))
        return max(ratios)  # each was rounded down from the same

    def image(self, places: int, patch_size: int, table: str) -> tuple[int, int]:
        """The image size of a position table over height and width."""
        if self.given.image_size is None:
            side = square_side(places, table) * patch_size
            return side, side
        height, width = self.given.image_size
        if places != (height // patch_size) * (width // patch_size):
            raise contradiction(f"--image_size={height},{width}", table, places)
        return height, width

    def clip(self, tubelet_size: int, patch_size: int) -> tuple[int, tuple[int, int]]:
        """Frames and image size where no table tells them: the published ones, if those fit."""
        frames, size = self.given.num_frames, self.given.image_size
        if (tubelet_size, patch_size) != (published.TUBELET_SIZE, published.PATCH_SIZE):
            if frames is None:
                raise UserError(
                    "the weights do not say how many frames a clip has: give --num_frames"
                )
            if size is None:
                raise UserError("the weights do not say how large frames are: give --image_size")
            return frames, size
        return self._published(frames, size)

    def clip_of(self, table: str, tokens: int, t: int, p: int) -> tuple[int, tuple[int, int]]:
        """Frames and image size of tubelets of ``t x p x p``, where one table has all tokens."""
        frames, size = self.given.num_frames, self.given.image_size
        if size is not None:
            patches = (size[0] // p) * (size[1] // p)
            found = frames or tokens // max(1, patches) * t
            if found // t * patches != tokens:
                said = f"--num_frames={frames} " if frames else ""
                raise contradiction(f"{said}--image_size={size[0]},{size[1]}", table, tokens)
            return found, size
        if frames is not None:
            places, rest = divmod(tokens, max(1, frames // t))
            if rest or frames % t:
                raise contradiction(f"--num_frames={frames}", table, tokens)
            side = square_side(places, table) * p
            return frames, (side, side)
        t0, p0 = published.TUBELET_SIZE, published.PATCH_SIZE
        if (t, p, tokens) != (t0, p0, (published.FRAMES // t0) * (published.SIDE // p0) ** 2):
            raise UserError(
                f"{table} has {tokens} places, for many frames of few patches or few of many: give "
                "--num_frames or --image_size"
            )
        return self._published(None, None)

    def _published(
        self, frames: int | None, size: tuple[int, int] | None
    ) -> tuple[int, tuple[int, int]]:
        if frames is None:
            self.remarks.append(f"num_frames {published.FRAMES}: as published")
        if size is None:
            self.remarks.append(f"image_size {published.SIDE},{published.SIDE}: as published")
        return frames or published.FRAMES, size or (published.SIDE, published.SIDE)


def check_heads(flag: str, heads: int, width: int) -> None:
    """Raises a `UserError` where attention heads do not divide the width that they share."""
    if width % heads:
        raise UserError(f"{heads} attention heads do not divide the width {width}: give --{flag}")


def contradiction(said: str, table: str, places: int) -> UserError:
    """What is given and what a position table says do not go together."""
    return UserError(
        f"{said} does not fit {table}, which has {places} places: leave it out, or correct it "
        "(--to_num_frames and --to_image_size interpolate tables to another size)"
    )


def square_side(count: int, what: str) -> int:
    """The side of a square grid of so many patches."""
    side = math.isqrt(count)
    if side * side != count:
        raise UserError(f"{what} has {count} places, which are no square: give --image_size")
    return side
