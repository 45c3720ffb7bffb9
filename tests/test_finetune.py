"""Fine-tuning as a job: from a pretraining run to a test, and what uses the model then."""

import csv
import json
import os
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import adamae_jax
from adamae_jax import (
    evaluate,
    finetune,
    load,
    predict,
    pretrain,
    pretrained,
    results,
)
from adamae_jax.best import BEST_JSON
from adamae_jax.convert import exporting
from adamae_jax.errors import UserError
from adamae_jax.loaded import Finetuned
from adamae_jax.training import loop, metrics, rundir
from adamae_jax.training.checkpoints import read_subtree
from tests import helpers
from tests.configs import tiny
from tests.data import fixtures
from tests.interop.convert_cases import run as call
from tests.runs import lines

CLASSES = 3
NAMES = ("red", "green", "blue")
STEPS = 24


class KilledError(Exception):
    """In the place of a SIGKILL."""


def coloured(number: int, label: int | None = None) -> bytes:
    """A noisy video of one colour, which is its class."""
    label = number % CLASSES if label is None else label
    frames = fixtures.video(number, 10).astype(np.float32) * 0.5
    frames[..., label % CLASSES] += 100
    return fixtures.serialize(frames.astype(np.uint8), f"video-{number}", label)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [coloured(number) for number in range(43)]
    splits = {"train": records[:32], "validation": records[32:]}
    return fixtures.write_dataset(
        tmp_path_factory.mktemp("data"), splits, with_masks=False, label_names=NAMES
    )


def base(data: Path) -> ConfigDict:
    config = tiny.get_config()
    config.data.dir, config.data.num_workers = str(data), 0
    config.pictures_every = 0
    return config


def config_of(data: Path, init_from: str = "") -> ConfigDict:
    """Every part of the recipe switched on."""
    config = base(data)
    config.init_from = init_from
    config.steps, config.checkpoint_every, config.eval_every = STEPS, 10, 8
    config.eval.num_examples, config.eval.knn, config.eval.test_views = 0, False, "2x2"
    config.data.repeats, config.data.shared_frames = 2, True
    config.data.crop, config.data.crop_area = "random_resized", (0.4, 1.0)
    config.data.frame_sampling = "stretched"
    config.optimizer.learning_rate, config.optimizer.layer_decay = 0.3, 0.8
    config.optimizer.average_decay = 0.5
    config.model.drop_path, config.classifier.head_dropout = 0.1, 0.1
    config.classifier.label_smoothing = 0.1
    config.augment.erasing, config.augment.mixup, config.augment.cutmix = 0.25, 0.2, 0.2
    config.augment.mix_group = 4
    return config


@pytest.fixture(scope="module", autouse=True)
def without_tensorflow() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_summary_writer", lambda directory: None)
        yield


@pytest.fixture(scope="module")
def pretrained_model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model of a few steps."""
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    config = base(data)
    config.steps, config.eval_every, config.optimizer.warmup_steps = 3, 0, 1
    pretrain.pretrain(config, workdir)
    return workdir / rundir.MODEL


@pytest.fixture(scope="module")
def run(data: Path, pretrained_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run."""
    workdir = tmp_path_factory.mktemp("finetuned") / "run"
    summary = finetune.finetune(config_of(data, str(pretrained_model)), workdir)
    assert summary["test"]["videos"] == 11
    return workdir


def test_it_learns_and_is_tested(run: Path) -> None:
    summary = json.loads((run / rundir.SUMMARY).read_text())
    assert summary["eval_examples"] == 11
    found = json.loads((run / finetune.TEST / results.METRICS).read_text())
    assert (found["views"], found["labelled"], found["unreadable"]) == ("2x2", 11, 0)
    assert found["top1"] >= 0.7
    assert found["top5"] == 1.0
    assert 0.6 <= found["mean_class_accuracy"] <= 1.0
    logged = lines(run)
    assert [line["step"] for line in logged if "eval_accuracy" in line] == [8, 16, 24]
    assert "accuracy" not in logged[0]  # of mixed clips there is none


def test_a_table_of_all_videos_and_a_picture(run: Path) -> None:
    with open(run / finetune.TEST / results.PREDICTIONS, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == [f"video-{number}" for number in range(32, 43)]
    assert [int(row["label"]) for row in rows] == [number % CLASSES for number in range(32, 43)]
    right = [row["class_1"] == row["label"] for row in rows]
    found = json.loads((run / finetune.TEST / results.METRICS).read_text())
    assert np.mean(right) == pytest.approx(found["top1"])
    assert rows[0]["name_1"] in NAMES
    for row in rows:
        assert sum(float(row[f"score_{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1, abs=1e-4)
    with Image.open(run / finetune.TEST / results.CONFUSION) as picture:
        assert picture.width > 900


def test_scores_are_those_of_a_plain_loop_over_views(run: Path, data: Path) -> None:
    """Softmax of each view in float64, averaged; views cut by the data's own function."""
    from adamae_jax import experiment
    from adamae_jax.data.records import Dataset
    from adamae_jax.data.temporal import Views
    from adamae_jax.data.views import make_views

    loaded = evaluate.load_classifier(str(run / rundir.MODEL))
    dataset = Dataset(data, "validation")
    with open(run / finetune.TEST / results.PREDICTIONS, newline="") as file:
        rows = list(csv.DictReader(file))
    for number in (0, 7):
        views = make_views(dataset[number], experiment.clip_spec(loaded.config), Views(2, 2))
        shares = []
        for view in views["video"]:
            logits = np.asarray(loaded.logits(view[None]))[0].astype(np.float64)
            shares.append(np.exp(logits) / np.exp(logits).sum())
        mean = np.mean(shares, axis=0)
        assert float(rows[number]["score_1"]) == pytest.approx(mean.max(), abs=1e-4)
        assert int(rows[number]["class_1"]) == mean.argmax()


def test_the_encoder_was_that_of_pretraining(run: Path, pretrained_model: Path) -> None:
    """Layer-wise rates keep the lowest layer near to where it began."""
    before = helpers.named(pretrained.load(pretrained_model).variables["params"])
    after = helpers.named(pretrained.load(run / rundir.MODEL).variables["params"])
    name = "encoder/embedding/projection/kernel"
    old, new = np.asarray(before[f"autoencoder/{name}"]), np.asarray(after[name])
    assert 0 < np.linalg.norm(new - old) < 0.5 * np.linalg.norm(old)


def test_the_best_model_is_kept(run: Path) -> None:
    said = json.loads((run / rundir.BEST / BEST_JSON).read_text())
    accuracies = {
        line["step"]: line["eval_accuracy"] for line in lines(run) if "eval_accuracy" in line
    }
    assert said["eval_accuracy"] == max(accuracies.values())
    assert said["step"] == min(s for s, a in accuracies.items() if a == said["eval_accuracy"])
    assert pretrained.load(run / rundir.BEST).step == said["step"]


def test_the_average_is_what_is_handed_on(run: Path) -> None:
    _, average = read_subtree(run / rundir.CHECKPOINTS, "average")
    _, params = read_subtree(run / rundir.CHECKPOINTS, "params")
    for loaded in (load(run), load(run / rundir.MODEL)):
        kernel = np.asarray(loaded.params["head"]["kernel"])
        np.testing.assert_array_equal(kernel, average["head"]["kernel"])
        assert (kernel != params["head"]["kernel"]).any()
        assert loaded.label_names == NAMES


def test_a_run_that_was_killed_goes_on_bitwise(
    run: Path, data: Path, pretrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = loop.Loop._log

    def killed(self: loop.Loop, step: int, figures: dict[str, float]) -> None:
        log(self, step, figures)
        if step == 13:
            raise KilledError

    workdir, config = tmp_path / "run", config_of(data, str(pretrained_model))
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_log", killed)
        with pytest.raises(KilledError):
            finetune.finetune(config, workdir)
    moved = pretrained_model.rename(pretrained_model.with_name("moved"))
    try:
        finetune.finetune(config, workdir)  # what it began with is needed no more
    finally:
        moved.rename(pretrained_model)
    assert lines(workdir) == lines(run)
    for name in (rundir.MODEL, rundir.BEST):
        first, second = (place / name / pretrained.MODEL_ARRAYS for place in (workdir, run))
        assert first.read_bytes() == second.read_bytes()


def test_a_complete_run_ends_at_once(run: Path, data: Path, pretrained_model: Path) -> None:
    before = os.stat(run / finetune.TEST / results.METRICS).st_mtime_ns
    summary = finetune.finetune(config_of(data, str(pretrained_model)), run)
    assert summary["test"]["views"] == "2x2"
    assert os.stat(run / finetune.TEST / results.METRICS).st_mtime_ns == before


def test_a_test_of_an_earlier_step_is_made_again(
    run: Path, data: Path, pretrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was complete may have been made longer."""
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    path = workdir / finetune.TEST / results.METRICS
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"step": stored["step"] - 1}))
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: {"made": "again"})
    summary = finetune.finetune(config_of(data, str(pretrained_model)), workdir)
    assert summary["test"] == {"made": "again"}


def wrong_labels(
    tmp_path: Path, names: tuple[str, ...], labels: list[int], held_out: list[int] | None = None
) -> Path:
    """Videos with these labels, of the same ones or others in the validation split."""
    splits = {"train": labels, "validation": labels if held_out is None else held_out}
    return fixtures.write_dataset(
        tmp_path / "data",
        {
            split: [coloured(number, label) for number, label in enumerate(of_split)]
            for split, of_split in splits.items()
        },
        with_masks=False,
        label_names=names,
    )


def test_a_classifier_of_other_classes(run: Path, data: Path, tmp_path: Path) -> None:
    other = wrong_labels(tmp_path, ("a", "b"), [0, 1] * 8)
    with pytest.raises(UserError, match=r"fresh_head=True"):
        finetune.finetune(config_of(other, str(run)), tmp_path / "run")
    names = wrong_labels(tmp_path / "names", ("red", "blue", "green"), [0, 1, 2] * 3)
    with pytest.raises(UserError, match=r"class 1 is 'green' for the classifier and 'blue'"):
        call(evaluate, f"--checkpoint={run}", f"--data_dir={names}")


def test_evaluate_as_a_job(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(evaluate, f"--checkpoint={run}", "--views=2x2", f"--output={tmp_path}", "--batch_size=4")
    printed = json.loads(capsys.readouterr().out)
    stored = json.loads((run / finetune.TEST / results.METRICS).read_text())
    assert printed == stored
    first, second = (
        (place / results.PREDICTIONS).read_text() for place in (tmp_path, run / finetune.TEST)
    )
    assert first == second


def movie(path: Path, label: int, frames: int = 20, rate: int | Fraction = 10) -> Path:
    """An MP4 file of a class's colour."""
    pixels = (fixtures.video(50, frames).astype(np.float32) * 0.5).copy()
    pixels[..., label] += 100
    return movie_of(path, pixels.astype(np.uint8), rate)


def movie_of(
    path: Path,
    pixels: np.ndarray,
    rate: int | Fraction = 10,
    pix_fmt: str = "yuv420p",
    **options: str,
) -> Path:
    """An MP4 file of frames [T, H, W, 3], with these options of its encoder."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt, stream.options = pix_fmt, dict(options)
        for frame in pixels:
            contiguous = np.ascontiguousarray(frame)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(contiguous, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_predict_as_a_job(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = [movie(tmp_path / f"{name}.mp4", label) for label, name in enumerate(NAMES)]
    call(predict, f"--checkpoint={run}", f"--output={tmp_path}", *map(str, videos))
    said = capsys.readouterr().out
    found = json.loads((tmp_path / predict.PREDICTIONS).read_text())
    best = [found[str(video)][0]["name"] for video in videos]
    assert sum(name == expected for name, expected in zip(best, NAMES, strict=True)) >= 2
    for video in videos:
        assert str(video) in said
        assert sum(each["score"] for each in found[str(video)]) == pytest.approx(1)


def test_saliency_of_a_whole_video(pretrained_model: Path, tmp_path: Path) -> None:
    video = movie(tmp_path / "a.mp4", 0, frames=21)
    call(predict, f"--checkpoint={pretrained_model}", f"--output={tmp_path}", str(video))
    with av.open(str(tmp_path / "a_saliency.mp4")) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate or 0) == 10
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 21
    assert frames[0].shape == (16, 48, 3)  # the clip's size, twice


def test_saliency_needs_a_network(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no video is given"):
        call(predict, f"--checkpoint={run}")
    with pytest.raises(UserError, match="give a video that FFmpeg can read"):
        call(predict, f"--checkpoint={run}", str(tmp_path / "no.mp4"))


@pytest.mark.parametrize("form", ["safetensors", "huggingface"])
def test_what_was_exported_says_the_same(run: Path, data: Path, tmp_path: Path, form: str) -> None:
    """In the authors' form and in Hugging Face's, as evaluate and predict read them."""
    exported = tmp_path / ("model.safetensors" if form == "safetensors" else "model")
    flag = [] if form == "safetensors" else ["--format=huggingface"]
    call(exporting, f"--source={run}", f"--output={exported}", *flag)
    back, loaded = adamae_jax.load(str(exported)), load(run)
    assert isinstance(back, Finetuned)
    assert isinstance(loaded, Finetuned)
    clip = loaded.clip(movie(tmp_path / "a.mp4", 1))
    np.testing.assert_allclose(back.logits(clip), loaded.logits(clip), rtol=1e-5, atol=1e-6)


def test_in_a_notebook(run: Path, tmp_path: Path) -> None:
    loaded = load(run)
    assert isinstance(loaded, Finetuned)
    path = movie(tmp_path / "a.mp4", 0)
    clip = loaded.clip(path)
    assert clip.shape == (1, 4, 16, 24, 3)
    np.testing.assert_array_equal(loaded.features(path), loaded.features(clip))
    latents = np.asarray(loaded.features(path))
    np.testing.assert_allclose(loaded.features(path, pool="mean"), latents.mean(1), rtol=1e-5)
    views = loaded.clip(str(path), views="2x3")
    assert views.shape == (6, 4, 16, 24, 3)
    for one, other in zip(loaded.predict(path, views="2x3"), loaded.predict(views), strict=True):
        assert one == other
    with pytest.raises(UserError, match="pool='max'"):
        loaded.features(path, pool="max")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="views are '3'"):
        loaded.clip(path, views="3")
