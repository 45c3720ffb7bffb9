import numpy as np
import pytest
import simplejpeg
from jaxtyping import Float

from adamae_jax.prepare.synthetic import MASK_STRIDE, MOTIONS, SIZES, SPLITS, Clip, Size, make_clip

DEMO = SIZES["demo"]
# Finer in space and time than the demo: motion can be measured from neighbouring frames.
FINE = Size(side=96, num_frames=24, clips={})
# What an object may change, in levels, where it covers so little that its mask is rounded to 0.
FAINT = 8


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [make_clip(DEMO, 0, "train", index) for index in range(400)]


def tokens(
    clip: Clip, crop: int = 48
) -> tuple[Float[np.ndarray, "t h w 128 3"], Float[np.ndarray, "t h w"]]:
    """Tubelets of 2 x 8 x 8 pixels, every other frame, and how much of each is foreground."""
    frames = np.stack(
        [
            simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(frame, 95, colorsubsampling="444"))
            for frame in clip.frames[:16:2]
        ]
    )[:, :crop, :crop]
    grid = crop // 8
    pixels = frames.reshape(4, 2, grid, 8, grid, 8, 3).astype(float)
    masks = clip.foreground[:16:2, : crop // MASK_STRIDE, : crop // MASK_STRIDE] / 255
    cells = 8 // MASK_STRIDE
    covered = masks.reshape(4, 2, grid, cells, grid, cells).mean((1, 3, 5))
    return pixels.transpose(0, 2, 4, 1, 3, 5, 6).reshape(4, grid, grid, 128, 3), covered


def normalised(pixels: Float[np.ndarray, "*t 128 3"]) -> Float[np.ndarray, "*t 128 3"]:
    return (pixels - pixels.mean(-2, keepdims=True)) / (
        pixels.std(-2, keepdims=True, ddof=1) + 1e-6
    )


@pytest.mark.parametrize("size", [*SIZES.values(), Size(32, 5, {})])
def test_shapes(size: Size) -> None:
    clip = make_clip(size, 3, "validation", 5)
    assert clip.frames.shape == (size.num_frames, size.side, size.side, 3)
    cells = size.side // MASK_STRIDE
    assert clip.foreground.shape == (size.num_frames, cells, cells)
    assert clip.frames.dtype == clip.foreground.dtype == np.uint8


def test_a_clip_is_a_function_of_its_address() -> None:
    first = make_clip(DEMO, 7, "train", 11)
    make_clip(DEMO, 7, "train", 12)
    again = make_clip(DEMO, 7, "train", 11)
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.foreground, again.foreground)
    others = [(8, "train", 11), (7, "validation", 11), (7, "train", 19)]
    for other in (make_clip(DEMO, *address) for address in others):
        assert other.label == first.label
        assert (other.frames != first.frames).mean() > 0.5


def test_classes_are_balanced(clips: list[Clip]) -> None:
    assert len(MOTIONS) >= 8
    assert np.bincount([clip.label for clip in clips]).tolist() == [50] * len(MOTIONS)
    for size in SIZES.values():
        assert set(size.clips) == set(SPLITS)
        assert all(count % len(MOTIONS) == 0 for count in size.clips.values())


def measured_motion(clip: Clip) -> Float[np.ndarray, " 4"]:
    """Mean velocity, and turn and growth per frame, from pixels alone (Lucas and Kanade, 1981)."""
    frames = clip.frames.astype(float).mean(-1)
    middle = (frames[1:] + frames[:-1]) / 2
    slope_y, slope_x = np.gradient(middle, axis=(1, 2))
    change = frames[1:] - frames[:-1]
    inside = np.repeat(np.repeat(clip.foreground == 255, MASK_STRIDE, 1), MASK_STRIDE, 2)
    inside = inside[1:] & inside[:-1]
    y, x = np.mgrid[: FINE.side, : FINE.side] - FINE.side / 2
    rows = []
    # One velocity field v = (a, b) + growth * r + turn * perpendicular(r) per connected patch of
    # 16 x 16 pixels: least squares on the constancy of brightness.
    for top in range(0, FINE.side, 16):
        for left in range(0, FINE.side, 16):
            patch = np.s_[:, top : top + 16, left : left + 16]
            where = inside[patch]
            if where.sum() < 600:
                continue
            gx, gy = slope_x[patch][where], slope_y[patch][where]
            px = np.broadcast_to(x, middle.shape)[patch][where]
            py = np.broadcast_to(y, middle.shape)[patch][where]
            px, py = px - px.mean(), py - py.mean()
            matrix = np.stack([gx, gy, gy * px - gx * py, gx * px + gy * py], -1)
            solution = np.linalg.lstsq(matrix, -change[patch][where], rcond=None)[0]
            rows.append([*solution, where.sum()])
    *motion, weights = np.array(rows).T
    return np.average(motion, axis=1, weights=weights)


def test_the_label_is_the_motion_that_one_sees() -> None:
    right = 0
    for index in range(40):
        clip = make_clip(FINE, 0, "train", index)
        vx, vy, turn, growth = measured_motion(clip)
        # In units of what is typical of each: pixels per frame; radians per frame; share per frame.
        scores = [-vx / 2, vx / 2, -vy / 2, vy / 2]
        scores += [turn / 0.08, -turn / 0.08, growth / 0.025, -growth / 0.025]
        right += int(np.argmax(scores)) == clip.label
    assert right >= 36


@pytest.mark.parametrize("moment", [0, DEMO.num_frames // 2])
def test_no_frame_tells_the_motion(clips: list[Clip], moment: int) -> None:
    """A linear classifier of where objects are, and how large, stays near one in eight."""
    features = np.stack([clip.foreground[moment].ravel() / 255.0 for clip in clips])
    rows, columns = (features.reshape(-1, 16, 16).sum(axis) for axis in (1, 2))
    features = np.concatenate([rows, columns, rows**2, columns**2], axis=1)
    features = np.concatenate([features, np.ones((len(clips), 1))], axis=1)
    labels = np.array([clip.label for clip in clips])
    right = 0
    for fold in range(8):  # cross-validation by whole groups of classes
        test = np.arange(len(clips)) // len(MOTIONS) % 8 == fold
        known = features[~test]
        ridge = known.T @ known + 3 * np.eye(known.shape[1])
        weights = np.linalg.solve(ridge, known.T @ np.eye(len(MOTIONS))[labels[~test]])
        right += (np.argmax(features[test] @ weights, 1) == labels[test]).sum()
    assert right / len(clips) < 0.2


def test_backgrounds_are_predictable_and_objects_are_not(clips: list[Clip]) -> None:
    background, across, within = [], [], []
    shares = []
    for clip in clips[:60]:
        pixels, covered = tokens(clip)
        shares.append((covered >= 0.5).mean())
        target = normalised(pixels)
        empty, full = covered == 0, covered > 0.9
        background.append(pixels.std(-2)[empty])
        pairs = empty[:, :, 2:] & empty[:, :, :-2]
        across.append(((target[:, :, 2:] - target[:, :, :-2]) ** 2).mean((-1, -2))[pairs])
        pairs = full[1:] & full[:-1]
        within.append(((target[1:] - target[:-1]) ** 2).mean((-1, -2))[pairs])
    assert 0.12 < np.mean(shares) < 0.25
    # No background is so flat that normalisation makes noise of it.
    assert np.concatenate(background).min() > 2
    # Mean squared differences of normalised tubelets: 0 for equal, 2 for unrelated ones.
    assert np.concatenate(across).mean() < 0.15
    assert np.concatenate(within).mean() > 1


def test_masks_are_where_the_objects_are() -> None:
    clip = make_clip(DEMO, 0, "train", 0)  # the camera stands still
    empty = np.repeat(np.repeat(clip.foreground == 0, MASK_STRIDE, 1), MASK_STRIDE, 2)
    # Behind the objects there is one still picture.
    scene = np.where(empty[..., None], clip.frames, 0).max(0)
    assert abs(clip.frames.astype(int) - scene)[empty].max() <= FAINT
    covered = np.repeat(np.repeat(clip.foreground == 255, MASK_STRIDE, 1), MASK_STRIDE, 2)
    known = empty.any(0) & covered
    assert known.sum() > 1000
    assert abs(clip.frames.astype(int) - scene)[known].mean() > 30
