"""Sizes of a model: read off its weights, given by the user, or known of published models."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from adamae_jax.errors import UserError
from adamae_jax.interop import systems
from adamae_jax.interop.files import StateDict


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What is known of stored weights beside them, from flags or files; None: not known.

    Attributes:
      num_frames: frames of a clip.
      image_size: height and width in pixels.
      sampling_rate: of ``config.data``.
      frame_sampling: of ``config.data``.
      num_heads: attention heads of the encoder.
      decoder_num_heads: attention heads of the decoder.
      sampler_num_heads: attention heads of AdaMAE's sampling network.
      mask_ratio: share of tokens that is masked.
      norm_epsilon: of the layer norms.
      decoder_norm_epsilon: of the decoder's last norm.
      classifier_norm_epsilon: of a classifier's last norm.
      pixels: mean and standard deviation of the input's channels.
      normalize_targets: of ``config.objective``.
      vit: what is known of the image MAE that AutoMAE's frozen ViT comes from.
    """

    num_frames: int | None = None
    image_size: tuple[int, int] | None = None
    sampling_rate: int | None = None
    frame_sampling: str | None = None
    num_heads: int | None = None
    decoder_num_heads: int | None = None
    sampler_num_heads: int | None = None
    mask_ratio: float | None = None
    norm_epsilon: float | None = None
    decoder_norm_epsilon: float | None = None
    classifier_norm_epsilon: float | None = None
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    normalize_targets: str | None = None
    vit: "ImportOptions | None" = None


class WeightReader:
    """Reads sizes off a state dict, and takes from options or published models what is missing.

    Attributes:
      state: the weights under the authors' names.
      options: what is known beside them; it goes before what would be taken from published models.
      remarks: what was taken from published models.
    """

    def __init__(self, state: StateDict, options: ImportOptions):
        self.state, self.options = state, options
        self.remarks: list[str] = []

    def has(self, *prefixes: str) -> bool:
        """Returns whether any name begins with one of these."""
        return any(name.startswith(prefixes) for name in self.state)

    def take(self, name: str, assumed: Any, source: str = "as published") -> Any:
        """Returns an option or, where it is not given, what is assumed.

        Args:
          name: field of `ImportOptions`.
          assumed: the value where it is not given; None where nothing can be assumed.
          source: says in a remark where the assumed value comes from; "": without a remark.

        Raises:
          UserError: where there is neither.
        """
        given = getattr(self.options, name)
        if given is None:
            if assumed is None:
                raise UserError(f"the weights do not say {_MEANING[name]}: give --{name}")
            if source:
                self.remarks.append(f"{name} {option_text(assumed)}: {source}")
            return assumed
        return given

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Returns the shape of an array that must be there and have so many axes, none empty."""
        if name not in self.state:
            raise UserError(f"the weights lack {name}: without it the model cannot be known")
        shape = self.state[name].shape
        if len(shape) != rank or 0 in shape:
            raise UserError(f"{name} has the shape {shape}: it should have {rank} axes")
        return shape

    def depth(self, prefix: str) -> int:
        """Returns how many blocks there are under a prefix such as ``encoder.blocks.``."""
        pattern = re.compile(re.escape(prefix) + r"(\d{1,6})\.(?:norm|attn|mlp|gamma)")
        matches = (pattern.match(name) for name in self.state)
        found = {int(match[1]) for match in matches if match}
        for layer in range(len(found)):
            if layer not in found:
                raise UserError(f"the weights lack {prefix}{layer}, and have blocks after it")
        return len(found)

    def size(self, prefix: str) -> tuple[int, int]:
        """Returns width and depth of a stack."""
        depth = self.depth(prefix)
        (width,) = self.shape(f"{prefix}0.norm1.weight", 1)
        return width, depth

    def blocks(
        self,
        prefix: str,
        option: str,
        known: Mapping[tuple[int, int], int],
        source: str = "as in the published model of this size",
    ) -> dict[str, int]:
        """Returns width, depth and heads of a stack.

        Args:
          prefix: in front of the blocks' numbers.
          option: field of `ImportOptions` with the heads.
          known: heads of published stacks by (width, depth).
          source: says in a remark where they come from.
        """
        width, depth = self.size(prefix)
        heads = known.get((width, depth))
        if heads is None and getattr(self.options, option) is None:
            raise UserError(
                f"{depth} blocks of width {width} could have any number of attention heads: give "
                f"--{option}"
            )
        heads = self.take(option, heads, source)
        check_heads(option, heads, width)
        return {"width": width, "depth": depth, "num_heads": heads}

    def mlp_ratio(self, *prefixes: str) -> float:
        """Returns the ratio that gives the hidden widths of all these stacks, if one does."""
        ratios = []
        for prefix in prefixes:
            hidden, width = self.shape(f"{prefix}0.mlp.fc1.weight", 2)
            ratio = hidden / width
            # int(width * ratio) is the hidden width: it must not be one less by rounding.
            ratios.append(ratio if width * ratio >= hidden else math.nextafter(ratio, math.inf))
        return max(ratios)  # each was rounded down from the same

    def image_size(self, table: str, places: int, patch_size: int) -> tuple[int, int]:
        """Returns the image size of a position table with so many places over height and width."""
        side = math.isqrt(places)
        square = (side * patch_size,) * 2 if side * side == places else None
        size = self.options.image_size
        if size is None:
            return square or _square_size(table, places, patch_size)
        if places != (size[0] // patch_size) * (size[1] // patch_size):
            raise contradiction(f"--image_size={option_text(size)}", table, places)
        return self.take("image_size", square)

    def clip(
        self, table: str, places: int, tubelet: int, patch: int
    ) -> tuple[int, tuple[int, int]]:
        """Returns frames and image size of a position table over all tokens."""
        frames, size = self.options.num_frames, self.options.image_size
        is_published = (tubelet, patch, places) == (
            systems.TUBELET_SIZE,
            systems.PATCH_SIZE,
            math.prod(systems.IMAGE_SIZE)
            // systems.PATCH_SIZE**2
            * (systems.NUM_FRAMES // systems.TUBELET_SIZE),
        )
        if frames is None and size is None and not is_published:
            raise UserError(
                f"{table} has {places} places, for many frames of few patches or few of many: give "
                "--num_frames or --image_size"
            )
        as_published = frames in (None, systems.NUM_FRAMES) and size in (None, systems.IMAGE_SIZE)
        if is_published and as_published:
            return (
                self.take("num_frames", systems.NUM_FRAMES),
                self.take("image_size", systems.IMAGE_SIZE),
            )
        if size is None:
            assert frames is not None
            patches, rest = divmod(places, max(1, frames // tubelet))
            if rest or frames % tubelet:
                raise contradiction(f"--num_frames={frames}", table, places)
            return frames, _square_size(table, patches, patch)
        patches = (size[0] // patch) * (size[1] // patch)
        found = frames or places // max(1, patches) * tubelet
        if found // tubelet * patches != places:
            flag = f"--num_frames={frames} " if frames else ""
            raise contradiction(f"{flag}--image_size={option_text(size)}", table, places)
        return found, size


_MEANING = {
    "num_frames": "how many frames a clip has",
    "image_size": "how large frames are",
}


def option_text(value: Any) -> str:
    """Returns an option as its flag takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_heads(option: str, heads: int, width: int) -> None:
    """Raises a `UserError` where attention heads do not divide the width that they share."""
    if width % heads:
        raise UserError(f"{heads} attention heads do not divide the width {width}: give --{option}")


def contradiction(flags: str, table: str, places: int) -> UserError:
    """Returns the error that options and a position table do not go together."""
    return UserError(
        f"{flags} does not fit {table}, which has {places} places: leave it out, or correct it "
        "(--to_num_frames and --to_image_size interpolate tables to another size)"
    )


def _square_size(table: str, places: int, patch_size: int) -> tuple[int, int]:
    side = math.isqrt(places)
    if side * side != places:
        raise UserError(f"{table} has {places} places, which are no square: give --image_size")
    return side * patch_size, side * patch_size
