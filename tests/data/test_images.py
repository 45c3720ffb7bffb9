"""Image datasets that TFDS prepares itself, read as videos of one frame."""

import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds

from adamae_jax.data.clips import ClipSpec
from adamae_jax.data.damage import BadRecordError
from adamae_jax.data.records import Dataset
from adamae_jax.data.schema import UNLABELLED
from adamae_jax.errors import UserError
from tests.data.fixtures import evaluation, flip_byte, training

SIZES = [(24, 40), (32, 24), (48, 48), (16, 56), (40, 40)]
SPEC = ClipSpec(1, 1, (16, 16), "random_resized", crop_area=(0.2, 1.0), interpolation="bicubic")


class Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Whatever examples are given, in one split."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # TFDS would look for checksums of downloads there

    def __init__(self, features: dict[str, Any], examples: list[dict[str, Any]], folder: Path):
        self._features = features
        self._examples = examples
        super().__init__(data_dir=str(folder))

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(self._features)
        return tfds.core.DatasetInfo(builder=self, description="Images.", features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        del dl_manager
        return {"train": iter(enumerate(self._examples))}

    def _generate_examples(self) -> Any:
        raise AssertionError("not asked for")


def write(builder: Images) -> Path:
    """The folder in which TFDS has written a dataset, without looking for it in the cloud."""
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return Path(builder.data_dir)


def pictures(channels: int = 3) -> list[np.ndarray]:
    """Smooth images of different sizes; the first channel's mean grows from image to image."""
    rng = np.random.default_rng(0)
    images = []
    for number, (height, width) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (height // 8, width // 8, channels), np.uint8)
        images.append(coarse.repeat(8, axis=0).repeat(8, axis=1))
        images[-1][..., 0] = 40 * number + 20
    return images


def jpeg(image: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(image, quality=98, colorsubsampling="444")


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs as imagenet2012 has them: ``image``, ``label`` and ``file_name``."""
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=["cat", "dog", "eel"]),
        "file_name": tfds.features.Text(),
    }
    examples = [
        {"image": io.BytesIO(jpeg(image)), "label": number % 3, "file_name": f"{number}.JPEG"}
        for number, image in enumerate(pictures())
    ]
    directory = write(Images(features, examples, tmp_path_factory.mktemp("jpegs")))
    return directory


@pytest.fixture(scope="module")
def pngs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey PNGs and nothing else."""
    features = {"image": tfds.features.Image(shape=(None, None, 1), encoding_format="png")}
    examples = [{"image": image} for image in pictures(1)]
    directory = write(Images(features, examples, tmp_path_factory.mktemp("pngs")))
    return directory


def test_jpegs_are_videos_of_one_frame(jpegs: Path) -> None:
    dataset = Dataset(jpegs, "train")
    assert dataset.holds_images and not dataset.has_foreground
    assert dataset.label_names == ("cat", "dog", "eel")
    records = sorted(
        (pickle.loads(pickle.dumps(dataset))[index] for index in range(len(dataset))),
        key=lambda record: record.id,
    )
    assert [record.id for record in records] == [f"{number}.JPEG" for number in range(5)]
    assert [record.label for record in records] == [0, 1, 2, 0, 1]
    assert [(record.height, record.width) for record in records] == SIZES
    assert [record.frames for record in records] == [(jpeg(image),) for image in pictures()]
    assert {(record.rate, record.foreground) for record in records} == {(0.0, None)}


def test_unlabelled_pngs_without_names(pngs: Path) -> None:
    dataset = Dataset(pngs, "train")
    assert dataset.label_names == ()
    records = [dataset[index] for index in range(len(dataset))]
    assert [record.id for record in records] == [f"train/{index}" for index in range(5)]
    assert {record.label for record in records} == {UNLABELLED}
    assert sorted((record.height, record.width) for record in records) == sorted(SIZES)


def test_clips_are_the_images(jpegs: Path, pngs: Path) -> None:
    spec = ClipSpec(1, 1, (16, 16), "none")
    for directory, tolerance in ((jpegs, 2), (pngs, 0)):
        with evaluation(Dataset(directory, "train"), spec, batch_size=5) as batches:
            batch = next(batches)
        assert batch["valid"].all()
        assert batch["video"].shape == (5, *spec.video_shape)
        means = batch["video"][..., 0].mean((1, 2, 3))
        np.testing.assert_allclose(sorted(means), [20, 60, 100, 140, 180], atol=tolerance)
        if directory == jpegs:
            numbers = np.round((means - 20) / 40).astype(int)
            assert batch["label"].tolist() == (numbers % 3).tolist()
        else:  # grey
            assert (batch["video"] == batch["video"][..., :1]).all()


def test_training_on_images(jpegs: Path) -> None:
    arguments: dict[str, Any] = {"seed": 0, "videos_per_step": 5, "first_step": 0, "num_steps": 2}
    with training(Dataset(jpegs, "train"), SPEC, repeats=2, **arguments) as batches:
        for batch in batches:
            assert batch["video"].shape == (10, 1, 16, 16, 3)
            assert sorted(batch["example_index"].tolist()) == sorted([*range(5)] * 2)
            assert not batch["replaced"].any()
            assert len({clip.tobytes() for clip in batch["video"]}) > 7


def test_clips_that_images_cannot_give_are_refused(jpegs: Path) -> None:
    for spec, complaint in {
        ClipSpec(16, 4, (16, 16)): f"num_frames is 16, but must be 1 for the dataset at {jpegs}",
        ClipSpec(
            1, 1, (16, 16), frame_sampling="time_scaled"
        ): "'time_scaled', but must be 'dense'",
    }.items():
        with pytest.raises(UserError, match=complaint):
            evaluation(Dataset(jpegs, "train"), spec, batch_size=4)
        with pytest.raises(UserError, match=complaint):
            training(
                Dataset(jpegs, "train"), spec, seed=0, videos_per_step=4, first_step=0, num_steps=1
            )


def test_images_have_checksums(tmp_path: Path) -> None:
    features = {"image": tfds.features.Image(encoding_format="jpeg")}
    examples = [{"image": io.BytesIO(jpeg(image))} for image in pictures()]
    directory = write(Images(features, examples, tmp_path))
    (shard,) = directory.glob("*.tfrecord*")
    flip_byte(shard, 200)
    dataset = Dataset(directory, "train")
    with pytest.raises(BadRecordError, match="record 0 of split 'train' .*checksum"):
        dataset[0]


def test_what_is_no_image_is_a_bad_record(tmp_path: Path) -> None:
    # TFDS takes encoded images as they are.
    features = {"image": tfds.features.Image(encoding_format="jpeg")}
    directory = write(Images(features, [{"image": io.BytesIO(b"rubbish")}], tmp_path))
    with pytest.raises(BadRecordError, match="its image is no JPEG or PNG"):
        Dataset(directory, "train")[0]


@pytest.mark.parametrize(
    ("features", "example", "complaint"),
    [
        (
            {"image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16, encoding_format="png")},
            {"image": np.zeros((8, 8, 1), np.uint16)},
            "'image' of the dataset at .* must be an image of 8 bits",
        ),
        (
            {"image": tfds.features.Tensor(shape=(8,), dtype=np.uint8)},
            {"image": np.zeros(8, np.uint8)},
            "'image' of the dataset at .* must be an image",
        ),
        (
            {
                "image": tfds.features.Image(),
                "label": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=2)),
            },
            {"image": np.zeros((8, 8, 3), np.uint8), "label": [0, 1]},
            "'label' of the dataset at .* must be the one class",
        ),
        (
            {"picture": tfds.features.Image()},
            {"picture": np.zeros((8, 8, 3), np.uint8)},
            "holds neither videos .* lacks the features id, .*, nor images, as a feature 'image'",
        ),
    ],
)
def test_other_features_are_refused(
    tmp_path: Path, features: dict[str, Any], example: dict[str, Any], complaint: str
) -> None:
    directory = write(Images(features, [example], tmp_path))
    with pytest.raises(UserError, match=complaint):
        Dataset(directory, "train")


def test_reading_images_does_not_import_tensorflow(jpegs: Path) -> None:
    code = (
        "import sys\n"
        "from adamae_jax.data.clips import ClipSpec\n"
        "from adamae_jax.data.batches import first_clips\n"
        "from adamae_jax.data.records import Dataset\n"
        f"dataset = Dataset({str(jpegs)!r}, 'train')\n"
        "batch = first_clips(dataset, ClipSpec(1, 1, (16, 16)), 5)\n"
        "print(len(batch['video']), 'tensorflow' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "5 False\n"
