"""What fine-tuning does to whole batches on the device: random erasing, mixup and cutmix.

Sources: VideoMAE's fine-tuning (``mixup.py`` and ``random_erasing.py`` of its released code, which
have them from timm); arXiv 1708.04896, 1710.09412 and 1905.04899.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from adamae_jax.models.transformer import ExampleKeys

FrameSize = tuple[int, ...]  # height and width
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)
ERASING_TRIES = 10


class MixDraw(struct.PyTreeNode):
    """How clips are mixed with their partners.

    Attributes:
      share: of the clip itself in the mixture, 1 where nothing is mixed.
      box: top, bottom, left and right of what cutmix takes from the partner, ends excluded.
      is_cutmix: whether a box is taken; otherwise all pixels are averaged.
    """

    share: Float[Array, "b"]
    box: Int[Array, "b 4"]
    is_cutmix: Bool[Array, "b"]


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Mixup and cutmix with the clip at the mirrored place of a group of clips.

    Attributes:
      mixup: both parameters of the Beta distribution of mixup's share; 0 for no mixup.
      cutmix: likewise of cutmix.
      probability: of mixing a group at all.
      switch_probability: of cutmix, where both are on.
      group: clips that share one draw and mix among themselves, as those on one GPU do in the
        authors' code; 0 for the whole batch.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch_probability: float = 0.5
    group: int = 0

    @property
    def is_on(self) -> bool:
        """Whether anything is mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def partners(self, array: Shaped[Array, "b *rest"]) -> Shaped[Array, "b *rest"]:
        """Returns what belongs to each clip's partner, from what belongs to the clips.

        By reversing, not by indices: groups that lie on one device each then stay there.
        """
        groups = array.reshape(-1, self.group or len(array), *array.shape[1:])
        return groups[:, ::-1].reshape(array.shape)

    def draw(self, keys: ExampleKeys, frame_size: FrameSize) -> MixDraw:
        """Draws for each group, with the key of its first clip.

        Args:
          keys: of all clips of the update, in order.
          frame_size: height and width.
        """
        group = self.group or len(keys)
        draws = jax.vmap(lambda key: self._draw(key, frame_size))(keys[::group])
        return jax.tree.map(lambda each: jnp.repeat(each, group, axis=0), draws)

    def _draw(self, key: Key[Array, ""], frame_size: FrameSize) -> MixDraw:
        for_whether, for_kind, for_share, for_box = jax.random.split(key, 4)
        is_cutmix = jnp.asarray(self.cutmix > 0)
        if self.mixup > 0 and self.cutmix > 0:
            is_cutmix = jax.random.uniform(for_kind) < self.switch_probability
        alpha = jnp.where(is_cutmix, self.cutmix or 1.0, self.mixup or 1.0)
        share = jax.random.beta(for_share, alpha, alpha)
        mixes = jax.random.uniform(for_whether) < self.probability
        share = jnp.where(mixes, share, 1.0)
        centre = jax.random.randint(for_box, (2,), 0, jnp.asarray(frame_size))
        box, cut = cutmix_box(share, centre, frame_size)
        return MixDraw(jnp.where(is_cutmix, cut, share), box, is_cutmix)


def cutmix_box(
    share: Float[Array, ""], centre: Int[Array, "2"], frame_size: FrameSize
) -> tuple[Int[Array, "4"], Float[Array, ""]]:
    """Returns the box that covers about ``1 - share`` of a frame, and the clip's share without it.

    Its sides are even; what lies outside of the frame is cut off.
    """
    bounds = []
    for middle, side in zip(centre, frame_size, strict=True):
        half = jnp.floor(side * jnp.sqrt(1.0 - share)).astype(jnp.int32) // 2
        bounds += [jnp.clip(middle - half, 0, side), jnp.clip(middle + half, 0, side)]
    box = jnp.stack(bounds)
    area = (box[1] - box[0]) * (box[3] - box[2])
    return box, 1.0 - area / math.prod(frame_size)


def in_box(box: Int[Array, "b 4"], frame_size: FrameSize) -> Bool[Array, "b H W"]:
    """Marks the pixels inside each box: top, bottom, left and right, ends excluded."""
    rows, columns = (jnp.arange(side) for side in frame_size)
    top, bottom, left, right = (box[:, side, None] for side in range(4))
    inside_rows = (rows >= top) & (rows < bottom)
    inside_columns = (columns >= left) & (columns < right)
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def mix(
    video: Float[Array, "b T H W C"], partner: Float[Array, "b T H W C"], draw: MixDraw
) -> Float[Array, "b T H W C"]:
    """Mixes normalised clips with their partners."""
    inside = in_box(draw.box, video.shape[2:4])[:, None, :, :, None]
    share = draw.share[:, None, None, None, None]
    averaged = share * video + (1.0 - share) * partner
    is_cutmix = draw.is_cutmix[:, None, None, None, None]
    return jnp.where(is_cutmix, jnp.where(inside, partner, video), averaged)


def soft_targets(label: Int[Array, "b"], num_classes: int, smoothing: float) -> Float[Array, "b k"]:
    """Returns one-hot targets, of which ``smoothing`` is spread over all classes."""
    return jax.nn.one_hot(label, num_classes) * (1.0 - smoothing) + smoothing / num_classes


def erase(
    video: Float[Array, "b T H W C"], keys: ExampleKeys, probability: float
) -> Float[Array, "b T H W C"]:
    """Fills one random box of a clip, the same in all its frames, with normal noise.

    Args:
      video: normalised clips.
      keys: one per clip.
      probability: of erasing in a clip.
    """

    def one(clip: Float[Array, "T H W C"], key: Key[Array, ""]) -> Float[Array, "T H W C"]:
        for_box, for_noise = jax.random.split(key)
        inside = in_box(_erased_box(for_box, clip.shape[1:3], probability)[None], clip.shape[1:3])
        noise = jax.random.normal(for_noise, clip.shape, clip.dtype)
        return jnp.where(inside[0][None, :, :, None], noise, clip)

    return jax.vmap(one)(video, keys)


def _erased_box(key: Key[Array, ""], frame_size: FrameSize, probability: float) -> Int[Array, "4"]:
    """The first of several boxes that fits; an empty one where none does, or nothing is erased."""
    height, width = frame_size
    for_whether, for_area, for_aspect, for_place = jax.random.split(key, 4)
    tries = (ERASING_TRIES,)
    area = (
        height
        * width
        * jax.random.uniform(for_area, tries, minval=ERASED_AREA[0], maxval=ERASED_AREA[1])
    )
    aspect = jnp.exp(
        jax.random.uniform(
            for_aspect,
            tries,
            minval=math.log(ERASED_ASPECT[0]),
            maxval=math.log(ERASED_ASPECT[1]),
        )
    )
    heights = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    chosen = jnp.argmax(fits)
    box_height, box_width = heights[chosen], widths[chosen]
    top, left = jnp.floor(
        jax.random.uniform(for_place, (2,))
        * jnp.stack([height - box_height + 1, width - box_width + 1])
    ).astype(jnp.int32)
    box = jnp.stack([top, top + box_height, left, left + box_width])
    erases = fits.any() & (jax.random.uniform(for_whether) < probability)
    return jnp.where(erases, box, 0)
