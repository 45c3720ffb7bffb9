import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from adamae_jax.data import clips
from adamae_jax.data.clips import ClipSpec, make_clips
from adamae_jax.data.examples import Record
from adamae_jax.data.rand_augment import (
    INCREASING,
    OPERATIONS,
    PLAIN,
    augment,
    draw,
    operation,
    parse,
)
from adamae_jax.data.records import Dataset
from adamae_jax.data.stream import Element
from adamae_jax.errors import UserError
from tests.data.fixtures import evaluation, serialize, small_records, training, video, write_dataset
from tests.data.test_clips import parsed

NOTATION = "rand-m7-n4-mstd0.5-inc1"
SPEC = ClipSpec(4, 1, (16, 16), "random_resized", horizontal_flip=True)
AUGMENTED = dataclasses.replace(SPEC, rand_augment=NOTATION)
FRAME = np.random.default_rng(0).integers(30, 220, (24, 33, 3), np.uint8)


def moved(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BICUBIC,
        fillcolor=(128, 128, 128),
    )


def rotated(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))


def brightened_below(image: Image.Image, added: int) -> Image.Image:
    pixels = np.asarray(image).astype(int)
    return Image.fromarray(
        np.where(pixels < 128, np.minimum(pixels + added, 255), pixels).astype(np.uint8)
    )


# Operation, level, whether it goes the other way -> what Pillow is asked for; the arguments worked
# out by hand from timm's table.
CALLS: dict[tuple[str, float, bool], Any] = {
    ("AutoContrast", 7, True): ImageOps.autocontrast,
    ("Equalize", 7, False): ImageOps.equalize,
    ("Invert", 0, False): ImageOps.invert,
    ("Rotate", 7, False): lambda image: rotated(image, 21),
    ("Rotate", 10, True): lambda image: rotated(image, -30),
    ("Posterize", 7, False): lambda image: ImageOps.posterize(image, 2),
    ("PosterizeIncreasing", 7, False): lambda image: ImageOps.posterize(image, 2),
    ("PosterizeIncreasing", 4, True): lambda image: ImageOps.posterize(image, 3),
    ("Solarize", 4, False): lambda image: ImageOps.solarize(image, 102),
    ("SolarizeIncreasing", 4, True): lambda image: ImageOps.solarize(image, 154),
    ("SolarizeAdd", 7, False): lambda image: brightened_below(image, 77),
    ("Color", 5, False): lambda image: ImageEnhance.Color(image).enhance(1.0),
    ("ColorIncreasing", 5, False): lambda image: ImageEnhance.Color(image).enhance(1.45),
    ("ContrastIncreasing", 10, True): lambda image: ImageEnhance.Contrast(image).enhance(0.1),
    ("Contrast", 10, False): lambda image: ImageEnhance.Contrast(image).enhance(1.9),
    ("Brightness", 0, True): lambda image: ImageEnhance.Brightness(image).enhance(0.1),
    ("BrightnessIncreasing", 5, True): lambda image: ImageEnhance.Brightness(image).enhance(0.55),
    ("Sharpness", 10, True): lambda image: ImageEnhance.Sharpness(image).enhance(1.9),
    ("SharpnessIncreasing", 5, True): lambda image: ImageEnhance.Sharpness(image).enhance(0.55),
    ("ShearX", 5, False): lambda image: moved(image, 1, 0.15, 0, 0, 1, 0),
    ("ShearY", 5, True): lambda image: moved(image, 1, 0, 0, -0.15, 1, 0),
    ("TranslateXRel", 10, True): lambda image: moved(image, 1, 0, -0.45 * 33, 0, 1, 0),
    ("TranslateYRel", 4, False): lambda image: moved(image, 1, 0, 0, 0, 1, 0.18 * 24),
}


@pytest.mark.parametrize("case", CALLS, ids=str)  # functions have other names in each process
def test_operations_are_pillows_at_timms_levels(case: tuple[str, float, bool]) -> None:
    expected = np.asarray(CALLS[case](Image.fromarray(FRAME)))
    np.testing.assert_array_equal(augment(FRAME, [operation(*case)]), expected)


def test_every_operation_is_checked() -> None:
    assert {name for name, *_ in CALLS} == set(OPERATIONS) == {*PLAIN, *INCREASING}
    assert len(PLAIN) == len(INCREASING) == 15


def test_notation() -> None:
    assert parse(NOTATION) == (7, 4, 0.5, INCREASING)
    assert parse("rand") == (10, 2, 0.0, PLAIN)  # timm's defaults
    assert parse("rand-m9-inc0") == (9, 2, 0.0, PLAIN)


BAD_NOTATIONS = ["original", "randm7", "rand-", "rand-m11", "rand-n0", "rand-m7-m8", "rand-m7.5"]
BAD_NOTATIONS += ["rand-w0", "rand-mstd", "rand-mstd-0.5", "rand-m7-inc2"]


@pytest.mark.parametrize("notation", BAD_NOTATIONS)
def test_other_notations_are_refused(notation: str) -> None:
    with pytest.raises(UserError, match=r"rand_augment is 'r?.*', but must be empty or timm's"):
        dataclasses.replace(SPEC, rand_augment=notation)


def test_draws_are_spread_as_they_should() -> None:
    rng = np.random.default_rng(0)
    policy = parse("rand-m7-n4-mstd0.5")
    drawn = [draw(policy, rng) for _ in range(5000)]
    counts = Counter(len(operations) for operations in drawn)
    for count, share in enumerate([1 / 16, 1 / 4, 3 / 8, 1 / 4, 1 / 16]):  # each with 1/2
        assert counts[count] == pytest.approx(5000 * share, abs=150)
    names = Counter(name for operations in drawn for name, _ in operations)
    assert set(names) == set(PLAIN)
    assert max(names.values()) < 1.25 * min(names.values())
    angles = np.array([amount for ops in drawn for name, amount in ops if name == "Rotate"]) / 3
    assert np.mean(angles < 0) == pytest.approx(0.5, abs=0.07)
    assert np.abs(angles).mean() == pytest.approx(7, abs=0.1)
    assert np.abs(angles).std() == pytest.approx(0.5, abs=0.07)
    edge = parse("rand-m10-n4-mstd2")
    steep = [
        abs(amount) for _ in range(500) for name, amount in draw(edge, rng) if name == "Rotate"
    ]
    assert max(steep) == 30.0 and min(steep) < 28


def record(pixels: np.ndarray, masks: np.ndarray | None = None) -> Record:
    return parsed(serialize(pixels, masks=masks), masks is not None)


def test_all_frames_of_a_clip_get_the_same() -> None:
    still = record(FRAME[None].repeat(6, 0))
    seen = set()
    for seed in range(8):
        (clip,) = make_clips(still, AUGMENTED, [np.random.default_rng(seed)])["video"]
        for frame in clip[1:]:
            np.testing.assert_array_equal(frame, clip[0])
        (plain,) = make_clips(still, SPEC, [np.random.default_rng(seed)])["video"]
        seen.add(bool((clip != plain).any()))
    assert True in seen


def test_whole_frames_are_augmented_before_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """And boxes and flips are those that the clip has without it."""
    pixels = video(0, 4, 40, 56)
    turned = (operation("Rotate", 10), operation("Invert", 0))
    monkeypatch.setattr(clips, "draw_operations", lambda *_: turned)
    source = record(pixels)
    decoded = make_clips(source, ClipSpec(4, 1, (40, 56), "none"), [None])["video"][0]
    for seed in range(4):
        found = make_clips(source, AUGMENTED, [np.random.default_rng(seed)])["video"]
        with monkeypatch.context() as patched:
            patched.setattr(
                clips,
                "each_frame",
                lambda _, numbers, *rest: ((n, augment(decoded[n], turned)) for n in numbers),
            )
            expected = make_clips(source, SPEC, [np.random.default_rng(seed)])["video"]
        np.testing.assert_array_equal(found, expected)


def test_evaluation_is_not_augmented() -> None:
    source = record(video(0, 10, 40, 56))
    plain = make_clips(source, SPEC, [None])["video"]
    np.testing.assert_array_equal(make_clips(source, AUGMENTED, [None])["video"], plain)


def test_no_frame_is_decoded_or_augmented_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    augmented: list[Any] = []
    each, change = clips.each_frame, clips.augment

    def noted(frames: Any, numbers: Any, size: Any, reduction: int) -> Any:
        assert reduction == 1  # whole frames are what it is applied to
        decoded.extend(numbers.tolist())
        return each(frames, numbers, size, reduction)

    def counted(pixels: Any, operations: Any) -> Any:
        augmented.append(operations)
        return change(pixels, operations)

    monkeypatch.setattr(clips, "each_frame", noted)
    monkeypatch.setattr(clips, "augment", counted)
    source = record(video(0, 3, 256, 320))  # a clip of 8 repeats the last frame
    spec = dataclasses.replace(AUGMENTED, num_frames=8, shared_frames=True)
    make_clips(source, spec, [np.random.default_rng(seed) for seed in range(2)])
    assert decoded == [0, 1] or decoded == [0, 1, 2]
    assert len(augmented) == 2 * len(decoded)


def test_training_clips_carry_no_masks_that_would_not_fit() -> None:
    pixels = video(0, 10, 24, 40)
    source = record(pixels, pixels[:, ::4, ::4, 0].copy())
    assert set(make_clips(source, AUGMENTED, [np.random.default_rng(0)])) == {"video"}
    assert set(make_clips(source, AUGMENTED, [None])) == {"video", "foreground"}
    assert set(make_clips(source, SPEC, [np.random.default_rng(0)])) == {"video", "foreground"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    directory = tmp_path_factory.mktemp("augmented")
    return Dataset(write_dataset(directory, {"train": small_records(7)}, shards=2), "train")


def read(dataset: Dataset, spec: ClipSpec, **options: Any) -> list[Element]:
    with training(
        dataset, spec, seed=3, videos_per_step=4, first_step=1, num_steps=2, **options
    ) as batches:
        return list(batches)


def test_the_same_batches_for_all_workers_threads_and_repeats(dataset: Dataset) -> None:
    alone = read(dataset, AUGMENTED, num_threads=0, repeats=2)
    for options in ({"num_threads": 4}, {"num_workers": 2}):
        for batch, other in zip(alone, read(dataset, AUGMENTED, repeats=2, **options), strict=True):
            np.testing.assert_array_equal(batch["video"], other["video"])
    once = read(dataset, AUGMENTED)
    plain = read(dataset, SPEC)
    for batch, first, unchanged in zip(alone, once, plain, strict=True):
        np.testing.assert_array_equal(batch["video"][::2], first["video"])
        assert (first["video"] != unchanged["video"]).any()
    with evaluation(dataset, AUGMENTED, batch_size=4) as batches:
        assert "foreground" in next(batches)
