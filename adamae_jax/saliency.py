"""Where a masking network looks in a video, from its first frame to its last."""

from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.crops import view_boxes
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.examples import Record
from adamae_jax.data.frames import each_frame
from adamae_jax.data.video_file import exact_rate
from adamae_jax.errors import UserError
from adamae_jax.loaded import Pretrained
from adamae_jax.pictures import COLOURS
from adamae_jax.task import example_keys
from adamae_jax.video_files import frame_rate, map_windows, windows

OPACITY = 0.55  # of the colours over the video
UNKNOWN_RATE = 25
BATCH = 4


def check(loaded: Pretrained) -> None:
    """Raises a `UserError` where the masks come from no distribution over tokens."""
    task = loaded.task
    clip = jax.ShapeDtypeStruct((1, *task.model.geometry.clip_shape), jnp.uint8)
    keys = jax.eval_shape(lambda: example_keys(0, 0, jnp.zeros(1, jnp.int32)))
    found = jax.eval_shape(
        lambda video, keys: task.forward(loaded.variables, video, keys, False).mask, clip, keys
    )
    if found.log_probs is None:
        raise UserError(
            f"the model's masks ({loaded.config.masking.name}) come from no network that looks at "
            "the video: give a model whose do, such as AdaMAE's"
        )


def of_video(
    loaded: Pretrained, record: Record, spec: ClipSpec
) -> tuple[Int64[np.ndarray, "s"], Float[np.ndarray, "s h w"]]:
    """Returns the saliency of a video at some of its frames.

    Clips that cover the video are looked at one by one. Each token's probability is given relative
    to the mean of its clip's, so that clips can be compared.

    Args:
      loaded: the model.
      record: the video.
      spec: what a clip is.

    Returns:
      Sorted numbers of frames, one for each time step of a clip, and the probability of each token
      times their number: 1 is what chance would give.
    """
    clips = windows(record, spec)
    geometry = loaded.task.model.geometry

    @jax.jit
    def probabilities(video: jax.Array) -> jax.Array:
        keys = example_keys(0, 0, jnp.arange(len(video)))
        mask = loaded.task.forward(loaded.variables, video, keys, False).mask
        assert mask.log_probs is not None  # `check` has seen to it
        return jnp.exp(mask.log_probs).reshape(-1, *geometry.grid)

    found = map_windows(probabilities, record, spec, clips.frames, BATCH)
    relative = found * geometry.num_tokens
    middles = clips.frames.reshape(len(clips.frames), geometry.grid[0], -1).mean(-1)
    numbers, first = np.unique(np.rint(middles).astype(np.int64).ravel(), return_index=True)
    return numbers, relative.reshape(-1, *geometry.grid[1:])[first]


def write_movie(
    path: Path,
    record: Record,
    found: tuple[Int64[np.ndarray, "s"], Float[np.ndarray, "s h w"]],
    spec: ClipSpec,
) -> None:
    """Writes the video as the model sees it, beside itself under its saliency, as MP4.

    Args:
      path: of the file; it is replaced.
      record: the video.
      found: from `of_video`.
      spec: what a clip is: the movie shows its centre crop.
    """
    numbers, maps = found
    (height, width), (box,) = view_boxes((record.height, record.width), spec.image_size, 1)
    largest = max(float(np.quantile(maps, 0.99)), 1e-9)
    everything = np.arange(len(record.frames))
    places = nearest(numbers, len(everything))
    temporary = path.with_suffix(".part.mp4")
    rate = exact_rate(frame_rate(record)) or UNKNOWN_RATE
    with av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
        stream.height, stream.width = (2 * (side // 2) for side in (box.height, 2 * box.width))
        try:
            for number, pixels in each_frame(
                record.frames, everything, (record.height, record.width)
            ):
                whole = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
                crop = whole.crop((box.left, box.top, box.left + box.width, box.top + box.height))
                seen = np.asarray(crop)
                both = np.concatenate([seen, overlay(seen, maps[places[number]] / largest)], 1)
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(both[: stream.height, : stream.width]), format="rgb24"
                )
                container.mux(stream.encode(frame))
        except BadRecordError as error:
            raise UserError(f"{record.id}: {error}") from error
        container.mux(stream.encode())
    temporary.replace(path)


def nearest(numbers: Int64[np.ndarray, "s"], count: int) -> Int64[np.ndarray, "n"]:
    """Returns for each of ``count`` frames the place of the sorted number that is next to its own.

    Of two that are equally near, the first.
    """
    return np.searchsorted((numbers[1:] + numbers[:-1]) / 2, np.arange(count))


def overlay(
    picture: UInt8[np.ndarray, "H W 3"], values: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Paints a map of values in [0, 1] over a picture, from dark to light."""
    size = (picture.shape[1], picture.shape[0])
    smooth = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    level = np.clip(np.asarray(smooth), 0, 1)
    stops = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(level, stops, c) for c in np.transpose(COLOURS)], -1)
    mixed = (1 - OPACITY) * picture + OPACITY * colours
    return np.rint(mixed).astype(np.uint8)
