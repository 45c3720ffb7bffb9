"""Features of whole videos: which clips, when they are, and whose features a folder holds."""

import contextlib
import json
import os
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adamae_jax import agreement, feature_files, features, peers, pretrained
from adamae_jax.data.records import Dataset
from adamae_jax.errors import UserError
from adamae_jax.prepare import embedded
from adamae_jax.video_files import open_video
from tests.data import fixtures
from tests.interop.convert_cases import LABELS, STEP, loaded, written
from tests.interop.convert_cases import run as call
from tests.test_finetune import coloured, movie


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, clips being every other of 8 frames, of 8 x 12 pixels."""
    return saved(tmp_path_factory.mktemp("model"))


def saved(directory: Path, **data: Any) -> Path:
    """The model of a classifier, with other fields in its config's ``data``."""
    model = loaded("videomae", fine_tuned=True)
    config = model.config.copy_and_resolve_references()
    config.data.update({"sampling_rate": 2, **data})
    pretrained.save(directory, model.variables, config, model.step, model.label_names)
    return directory


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    movie(folder / "a.mp4", 0, frames=21)
    movie(folder / "sub" / "b.mp4", 1, frames=5)
    (folder / "c.mp4").write_bytes(b"no video")
    return folder


def test_features_of_a_folder(model: Path, videos: Path, tmp_path: Path) -> None:
    """Windows cover each video; a second start makes what is missing and nothing else."""
    arguments = (
        f"--checkpoint={model}",
        f"--source={videos}",
        f"--output={tmp_path / 'out'}",
        "--batch_size=2",
    )
    call(features, *arguments)
    with np.load(tmp_path / "out" / "a.mp4.npz") as found:
        # A clip lasts 4 x 2 frames, at 10 a second; the last one ends with the video.
        np.testing.assert_allclose(found["start_s"], [0.0, 0.8, 1.3])
        np.testing.assert_allclose(found["end_s"], [0.8, 1.6, 2.1])
        pooled = found["features"]
        assert pooled.shape == (3, 16)
    with np.load(tmp_path / "out" / "sub" / "b.mp4.npz") as found:
        assert found["features"].shape == (1, 16)
    assert not (tmp_path / "out" / "c.mp4.npz").exists()
    os.remove(tmp_path / "out" / "sub" / "b.mp4.npz")
    before = os.stat(tmp_path / "out" / "a.mp4.npz").st_mtime_ns
    call(features, *arguments)
    assert os.stat(tmp_path / "out" / "a.mp4.npz").st_mtime_ns == before
    assert (tmp_path / "out" / "sub" / "b.mp4.npz").exists()


def test_features_of_another_model_are_not_taken(model: Path, videos: Path, tmp_path: Path) -> None:
    """Nor those of other options, or of nobody knows what."""
    output = tmp_path / "out"
    described = features.described_by(features.stored.load(str(model)), "mean", 0)
    source = features.source_of(str(videos), "train")
    feature_files.begin(output, described | source.described, source.names)
    feature_files.begin(output, described | source.described, source.names)  # goes on
    assert json.loads((output / feature_files.RECORD).read_text())["step"] == STEP
    other = written(tmp_path / "other", "videomae_scaled", fine_tuned=True)
    for options, said in (
        ((f"--checkpoint={other}",), "holds features of model '"),
        ((f"--checkpoint={model}", "--pool=none"), "pool 'mean', not 'none': give another"),
        ((f"--checkpoint={model}", "--stride=2"), "stride 0, not 2: give another --output"),
    ):
        with pytest.raises(UserError, match=said):
            call(features, *options, f"--source={videos}", f"--output={output}")
    with pytest.raises(UserError, match="holds features of source '.*videos.*', not '.*sub'"):
        call(
            features,
            *(f"--checkpoint={model}", f"--source={videos / 'sub'}", f"--output={output}"),
        )
    (output / feature_files.RECORD).write_text("[" * 9)
    with pytest.raises(UserError, match=r"features.json cannot be read .*: give another --output"):
        feature_files.begin(output, described, source.names)
    os.remove(output / feature_files.RECORD)
    feature_files.write(feature_files.file_of(output, "a.mp4"), {"features": np.zeros(3)})
    with pytest.raises(UserError, match=r"has files of videos, but no features.json"):
        feature_files.begin(output, described, source.names)


def test_features_of_a_dataset(model: Path, tmp_path: Path) -> None:
    """A torn video is left out; the others are found by their number, and say who they are."""
    records = [coloured(number) for number in range(3)]
    records[1] = b"\xff"
    data = fixtures.write_dataset(tmp_path / "data", {"test": records}, 1, False, LABELS)
    output = tmp_path / "out"
    arguments = (f"--checkpoint={model}", f"--source={data}", "--split=test", f"--output={output}")
    call(features, *arguments)
    assert sorted(path.name for path in output.iterdir()) == [
        "00000000.npz",
        "00000002.npz",
        "features.json",
    ]
    stored = json.loads((output / feature_files.RECORD).read_text())
    assert (stored["split"], stored["data"]) == ("test", Dataset(data, "test").fingerprint)
    with np.load(output / "00000002.npz") as found:
        assert str(found["id"]) == "video-2"
        assert found["features"].shape == (2, 16)
        np.testing.assert_allclose(found["start_s"], [0, 2 / 8])  # 8 of 10 frames, 8 a second
    with pytest.raises(UserError, match="none of the 1 videos could be read"):
        call(features, *arguments)


def test_an_embedded_dataset_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(embedded, "prepare", lambda name, *_, **__: made.append(name))
    with pytest.raises(UserError, match="moving_objects_demo"):  # nothing was made, after all
        features.source_of(str(tmp_path / "moving_objects_demo"), "train")
    assert made == ["demo"]


def test_a_stride_between_clips_of_whole_videos(videos: Path, tmp_path: Path) -> None:
    whole = saved(tmp_path / "model", frame_sampling="segments")
    arguments = (f"--checkpoint={whole}", f"--source={videos}", f"--output={tmp_path / 'out'}")
    with pytest.raises(UserError, match=r"--stride=3 is for models of short clips"):
        call(features, *arguments, "--stride=3")
    assert not (tmp_path / "out").exists()


def test_each_process_takes_its_share(
    model: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the job slices them; how processes meet is tested where jobs train."""
    shares: list[list[str]] = []

    def noted(loaded: Any, source: Any, own: list[str], output: Path) -> tuple[int, int]:
        shares.append(own)
        return len(own), 0

    monkeypatch.setattr(features, "write_all", noted)
    monkeypatch.setattr(agreement, "gathered", lambda value: [value])
    monkeypatch.setattr(agreement, "check", lambda described: None)
    monkeypatch.setattr(peers, "ending_together", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(features, "make_embedded", lambda _: None)
    for index in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr(features.jax, "process_count", lambda: 2)
            patch.setattr(features.jax, "process_index", lambda index=index: index)
            call(
                features,
                *(f"--checkpoint={model}", f"--source={videos}", f"--output={tmp_path / 'out'}"),
                *("--coordinator=localhost:1", "--num_processes=2", f"--process_id={index}"),
            )
    assert [len(share) for share in shares] == [2, 1]
    assert sorted(shares[0] + shares[1]) == ["a.mp4", "c.mp4", "sub/b.mp4"]


def test_a_long_video_takes_no_more_memory(tmp_path: Path) -> None:
    """All its clips together are 22 MB, of which 4 clips are there at a time."""
    config = loaded("videomae", fine_tuned=True).config.copy_and_resolve_references()
    config.data.update({"num_frames": 16, "sampling_rate": 1, "image_size": (24, 32)})
    seen: list[int] = []

    def mean(video: np.ndarray, pool: str) -> np.ndarray:
        seen.append(len(video))
        return video.mean((1, 2, 3))

    model: Any = SimpleNamespace(config=config, features=mean)
    path = movie(tmp_path / "a.mp4", 0, frames=600)
    tracemalloc.start()
    try:
        found = features.of_video(model, open_video(path), 1, 4, "mean")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found["features"].shape == (585, 3)
    assert set(seen) == {4}
    assert peak < 4e6
