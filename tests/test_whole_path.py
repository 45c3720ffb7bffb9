"""One's own VideoMAE lists and checkpoint: prepared, continued here, and given back."""

import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from safetensors.numpy import load_file

import adamae_jax
from adamae_jax import experiment, pretrain, pretrained
from adamae_jax.config import default_config, masking_config
from adamae_jax.convert import exporting
from adamae_jax.interop import exports, files, systems
from adamae_jax.training import metrics
from tests import helpers
from tests.data import videos
from tests.interop.convert_cases import run
from tests.prepare.test_job import run as prepare

# A ViT of the published tubelets, and with heads that would be known were it published.
ENCODER, DECODER = {"width": 16, "depth": 2, "num_heads": 2}, {"width": 12, "depth": 1}


def checkpoint(file: Path) -> dict[str, np.ndarray]:
    """Weights under VideoMAE's names, with nothing beside them."""
    config: ConfigDict = default_config()
    config.model.encoder.update(ENCODER)
    config.model.decoder.update({**DECODER, "num_heads": 3})
    with config.unlocked():
        config.masking = masking_config("tube", 0.9)
    variables = helpers.variables(experiment.pretraining(config), seed=4)
    state = exports.to_authors(pretrained.build(variables, config, 0, (), "", "theirs"))
    files.write_safetensors(file, state)
    return state


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_from_videomaes_files_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(systems.ENCODER_HEADS, (16, 2), 2)
    monkeypatch.setitem(systems.VIDEOMAE.decoder_heads, (12, 1), 3)
    monkeypatch.setattr(metrics, "_summary_writer", lambda directory: None)
    theirs = checkpoint(tmp_path / "checkpoint.safetensors")
    lines = []
    for number in range(8):
        video = videos.make_video(tmp_path / "videos" / f"{number}.mp4", 20, 32, 32)
        lines.append(f"{video} {number % 3}\n")
    (tmp_path / "train.csv").write_text("".join(lines))
    data, workdir = tmp_path / "data", tmp_path / "run"
    prepare(
        *(f"--source={tmp_path / 'videos'}", f"--list=train={tmp_path / 'train.csv'}"),
        f"--output={data}",
    )
    settings = {
        **{f"model.encoder.{name}": value for name, value in ENCODER.items()},
        **{f"model.decoder.{name}": value for name, value in DECODER.items()},
        **{"model.decoder.num_heads": 3, "model.patch_size": 16, "data.num_frames": 4},
        **{"data.image_size": "(32,32)", "masking.mask_ratio": 0.5, "data.dir": data},
        **{"batch_size": 8, "steps": 2, "eval_every": 0, "compilation_cache_dir": ""},
        **{"optimizer.learning_rate": 1e-3, "optimizer.min_learning_rate": 1e-4},
        "init_from": tmp_path / "checkpoint.safetensors",
    }
    given = [f"--config.{name}={value}" for name, value in settings.items()]
    arguments = ["--config=configs/videomae_demo.py", f"--workdir={workdir}", *given]
    monkeypatch.setattr(sys, "argv", ["job", *arguments])
    run(pretrain, *arguments)
    output = tmp_path / "ours.safetensors"
    run(exporting, f"--source={workdir}", f"--output={output}")
    ours = load_file(output)
    assert {name: array.shape for name, array in ours.items()} == {
        name: array.shape for name, array in theirs.items()
    }
    # Two small steps from where they were.
    moved = {name: np.abs(ours[name] - theirs[name]).max() for name in theirs}
    assert 0 < max(moved.values()) < 1e-2
    assert adamae_jax.load(workdir).config.optimizer.warmup_steps == 0
    assert not set(flags.FLAGS) & {"workdir", "config"}
