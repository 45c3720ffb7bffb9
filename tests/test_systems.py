"""The whole family, each demo config made smaller still and trained: draw, load, refuse.

All but adamae_demo, which the README's commands run.
"""

import dataclasses
import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from adamae_jax import experiment, pictures, pretrain, pretrained
from adamae_jax.data.batches import first_clips
from adamae_jax.data.records import Dataset
from adamae_jax.errors import UserError
from adamae_jax.prepare import synthetic
from adamae_jax.task import example_keys
from adamae_jax.training import metrics
from tests import jobs
from tests.data import fixtures
from tests.helpers import named
from tests.runs import ROOT, embedded_clips, environment, lines

STEPS, HALF = 20, 10
# Half the side with half the patch: the same grids as the demos'.
SMALLER: dict[str, Any] = {
    "batch_size": 8,
    "steps": STEPS,
    "checkpoint_every": HALF,
    "eval_every": STEPS,
    "pictures_every": 0,
    "data.image_size": (24, 24),
    "data.num_threads": 1,
    "model.encoder.width": 32,
    "model.encoder.depth": 2,
    "model.decoder.width": 16,
    "model.decoder.depth": 1,
    "model.unroll": 1,
    "compilation_cache_dir": "",
    "optimizer.learning_rate": 0.16,
    "optimizer.warmup_steps": 3,
    "eval.num_examples": 8,
    "eval.random_draws": 2,
}
VIT = {"masking.options.vit_width": 32, "masking.options.vit_depth": 2}
VIDEO, IMAGE = {"model.patch_size": 4}, {"model.patch_size": 2}


@dataclasses.dataclass(frozen=True)
class System:
    """A demo config and what becomes of it.

    Attributes:
      changes: of the config, besides `SMALLER`.
      losses: that are logged besides the reconstruction's.
      needs_mae: whether mae_demo's run is its frozen network.
    """

    changes: Mapping[str, Any]
    losses: tuple[str, ...] = ()
    needs_mae: bool = False


ADVERSARIAL = ("loss_generator", "loss_adversary")
SYSTEMS = {
    "videomae_demo": System(VIDEO),
    "videomae_v2_demo": System(VIDEO),
    "everest_demo": System(VIDEO),
    "oracle_demo": System(VIDEO),
    "budget_demo": System(VIDEO),
    "mae_st_demo": System(VIDEO),
    "mae_demo": System(IMAGE),
    "adamae_image_demo": System(IMAGE, ("loss_sampling",)),
    "automae_demo": System({**IMAGE, **VIT}, ADVERSARIAL, needs_mae=True),
    "automae_video_demo": System({**IMAGE, **VIT}, ADVERSARIAL, needs_mae=True),
    "semmae_demo": System({**IMAGE, **VIT}, needs_mae=True),
}
# Those that draw their first and their last step, and the kinds of their pictures.
DRAWN = {"videomae_demo": ["gif", "png"], "mae_demo": ["png"]}
# Those that are evaluated, which takes another compilation: these, and one with an adversary.
EVALUATED = [*DRAWN, "automae_video_demo"]
Runs = Callable[[str], Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginning of the embedded dataset."""
    return fixtures.write_dataset(
        tmp_path_factory.mktemp("data") / "moving_objects",
        {
            "train": embedded_clips("train", 16),
            "validation": embedded_clips("validation", 1),  # pictures take long
        },
        label_names=synthetic.MOTIONS,
    )


# Each checkpoint once: looking at a model's shapes takes a second.
load = functools.cache(pretrained.load_pretrained)


def config_of(name: str, data: Path, mae: Path | None, **different: Any) -> ConfigDict:
    """A demo's config, smaller; ``different`` fields have ``__`` for their dots."""
    config: ConfigDict = importlib.import_module(f"configs.{name}").get_config()
    system = SYSTEMS[name]
    config.update_from_flattened_dict({**SMALLER, **system.changes, "data.dir": str(data)})
    if name not in EVALUATED:
        config.eval_every = 0
    if system.needs_mae:
        config.masking.options.pretrained = str(mae)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in different.items()})
    return config


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Gives the workdir of a system's run, which is made when it is first asked for."""
    place = tmp_path_factory.mktemp("runs")
    drawing = pretrain.drawing

    def made(name: str) -> Path:
        if not (place / name).exists():
            mae = made("mae_demo") if SYSTEMS[name].needs_mae else None
            no_pictures = lambda *run: lambda *step: None  # noqa: E731
            patch.setattr(pretrain, "drawing", drawing if name in DRAWN else no_pictures)
            pretrain.pretrain(config_of(name, data, mae), place / name)
        return place / name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_summary_writer", lambda directory: None)  # TensorFlow
        yield made


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_it_trains(run: Runs, name: str) -> None:
    logged = lines(run(name))
    assert [line["step"] for line in logged] == list(range(1, STEPS + 1))
    losses = {key for key in logged[0] if key.startswith("loss")}
    assert losses == {"loss", "loss_reconstruction", *SYSTEMS[name].losses}
    values = [line[key] for line in logged for key in (*losses, "grad_norm", "learning_rate")]
    assert np.isfinite(values).all()
    loss = [line["loss_reconstruction"] for line in logged]
    assert np.mean(loss[-3:]) < 0.95 * np.mean(loss[:3])
    assert logged[-1]["skipped"] == 0
    # Epochs are passes over the videos, of which MAE-ST's demo takes two clips each.
    videos = STEPS * 8 / (2 if name == "mae_st_demo" else 1)
    assert logged[-1]["epoch"] == videos / 16


@pytest.mark.parametrize(("name", "kinds"), DRAWN.items())
def test_it_draws(run: Runs, name: str, kinds: list[str]) -> None:
    """Images do not move."""
    names = [f"{when}_0.{kind}" for when in ("end", "start") for kind in kinds]
    assert sorted(path.name for path in (run(name) / "pictures").iterdir()) == names


def test_it_can_be_drawn_later(run: Runs, data: Path, tmp_path: Path) -> None:
    """What `adamae_jax.visualize` does, in this process: the system with the most to bring back."""
    loaded = load(run("automae_video_demo"))
    dataset = Dataset(data, "validation")
    batch = first_clips(dataset, experiment.clip_spec(loaded.config), 1)
    keys = example_keys(0, jnp.zeros((), jnp.int32), jnp.arange(1))
    panels = pictures.compute(loaded.task, loaded.variables, batch["video"], keys)
    grid = loaded.model.geometry.grid
    count = loaded.task.strategy.num_visible(grid)
    assert panels["visible"].shape == (1, *grid)
    assert (panels["visible"].sum((1, 2, 3)) == count).all()
    assert (panels["predicted"] == ~panels["visible"]).all()
    assert len(pictures.save(panels, tmp_path, "clip")) == len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "frames", "tokens"),
    [("mae_st_demo", 8, 144), ("mae_demo", 1, 144), ("automae_video_demo", 4, 288)],
)
def test_run_and_model_directory_give_the_same_features(
    run: Runs, name: str, frames: int, tokens: int
) -> None:
    workdir = run(name)
    video = np.random.default_rng(0).integers(0, 256, (2, frames, 24, 24, 3), dtype=np.uint8)
    loaded, stored = load(workdir), load(workdir / "model")
    assert loaded.step == stored.step == STEPS
    features = loaded.features(video)
    assert features.shape == (2, tokens, 32)
    np.testing.assert_array_equal(features, stored.features(video))
    assert np.abs(features[0] - features[1]).max() > 1e-3  # they speak of the clip


def test_mae_st_is_all_there(run: Runs) -> None:
    config = json.loads((run("mae_st_demo") / "config.json").read_text())
    assert (config["data"]["repeats"], config["model"]["predicted_frames"]) == (2, 4)
    params = named(load(run("mae_st_demo")).params)
    assert {"encoder/class_token", "decoder/class_token"} <= params.keys()
    assert params["encoder/positions/temporal"].shape == (4, 32)
    assert params["decoder/head/kernel"].shape == (16, 1 * 4 * 4 * 3)  # one frame of each two


def assert_same(one: Any, other: Any) -> None:
    one, other = named(one), named(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_automae_holds_maes_encoder_frozen(run: Runs) -> None:
    encoder = load(run("mae_demo")).params["encoder"]
    workdir = run("automae_video_demo")
    for loaded in (load(workdir, HALF), load(workdir), load(workdir / "model")):
        assert_same(loaded.variables["frozen"]["vit"], encoder)


def test_automae_trains_generator_and_discriminator(run: Runs) -> None:
    workdir = run("automae_video_demo")
    early, late = load(workdir, HALF).variables, load(workdir).variables
    before, after = (named(v["params"]["masking"]) for v in (early, late))
    assert {path.split("/")[0] for path in before} == {"generator", "discriminator"}
    for path in before:
        assert (before[path] != after[path]).any(), path
    state, later = named(early["state"]), named(late["state"])
    assert any((state[path] != later[path]).any() for path in state)


def test_a_wrong_frozen_network_is_refused(run: Runs, data: Path, tmp_path: Path) -> None:
    frozen = "masking__options__pretrained"
    cases: list[tuple[dict[str, Any], str]] = [
        ({frozen: ""}, "masking.options.pretrained is empty"),
        ({frozen: str(tmp_path)}, f"{tmp_path} holds neither config.json"),
        ({frozen: str(run("videomae_demo"))}, "is no image MAE: it has positions 'sincos_1d'"),
        ({"masking__options__vit_width": 48}, "set masking.options.vit_width=32"),
        ({"data__image_size": (32, 32)}, "into (12, 12) patches and this model its frames into"),
        ({"objective__pixel_mean": (0.5, 0.5, 0.5)}, "set objective.pixel_mean"),
    ]
    for different, words in cases:
        config = config_of("automae_demo", data, run("mae_demo"), **different)
        with pytest.raises(UserError) as caught:
            pretrain.pretrain(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        assert words in str(caught.value), different
        assert "\n" not in str(caught.value)


def train(name: str, workdir: Path, data: Path, **different: Any) -> dict[str, Any]:
    """A demo as it is, for 200 steps, as a process: here the time goes into running."""
    values = {"data.dir": data, "steps": 200, "eval_every": 200, "compilation_cache_dir": ""}
    values |= {k.replace("__", "."): v for k, v in different.items()}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "adamae_jax.pretrain", f"--workdir={workdir}"),
            f"--config=configs/{name}.py",
            *(f"--config.{field}={value}" for field, value in values.items()),
        ],
        cwd=ROOT, env={**environment(), "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    summary: dict[str, Any] = json.loads((workdir / "summary.json").read_text())
    return summary


@pytest.mark.full
def test_what_no_paper_has_learns(tmp_path: Path) -> None:
    """The demos as they are, with fewer steps: the share of the first loss that is left held out.

    AdaMAE's sampler also finds the objects; AutoMAE's generator sees the attention of an MAE that
    has trained for minutes, and nothing is expected of its masks.
    """
    data, mae = tmp_path / "moving_objects_demo", tmp_path / "mae_demo"
    assert jobs.run("adamae_jax.prepare", "--embedded=demo", f"--output={data}").status == 0
    image = train("adamae_image_demo", tmp_path / "adamae_image_demo", data)
    assert image["eval_loss_reconstruction"] < 0.5 * image["loss_reconstruction_first"]
    assert image["foreground_lift"] > 1.3 * image["foreground_lift_random"]
    train("mae_demo", mae, data)
    video = train("automae_video_demo", tmp_path / "video", data, masking__options__pretrained=mae)
    assert video["eval_loss_reconstruction"] < 0.8 * video["loss_reconstruction_first"]


def test_every_demo_is_here() -> None:
    assert {path.stem for path in (ROOT / "configs").glob("*_demo.py")} == {
        "adamae_demo",
        "finetune_demo",  # of adamae_demo's run: tests/test_finetune_configs.py
        "probe_demo",  # likewise: tests/test_probe.py
        # Of launch/compare.py: tests/test_compare_configs.py.
        *("comparison_demo", "comparison_finetune_demo", "comparison_probe_demo"),
        *SYSTEMS,
    }
