"""Every job reads what an import writes, and the page about weights does what it says."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from absl import flags

import adamae_jax
from adamae_jax import experiment, frozen, pretrained, visualize
from adamae_jax.config import masking_config
from adamae_jax.convert import exporting, importing
from adamae_jax.errors import UserError
from adamae_jax.interop import exports, files
from tests import helpers
from tests.data import fixtures
from tests.interop.convert_cases import bring, changed, config_of, given, loaded, run, written

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "weights.md").read_text()


def imported(directory: Path, name: str, fine_tuned: bool = False) -> Path:
    """A model directory that was made of the authors' weights."""
    file = directory / "theirs.safetensors"
    files.write_safetensors(file, exports.to_authors(loaded(name, fine_tuned)))
    return bring(file, directory / name, *given(name, fine_tuned))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of noise."""
    directory = tmp_path_factory.mktemp("data") / "small"
    clips = np.random.default_rng(0).integers(0, 256, (2, 40, 52, 60, 3), np.uint8)
    records = [fixtures.serialize(clip, f"noise-{i}", i) for i, clip in enumerate(clips)]
    fixtures.write_dataset(directory, {"train": records, "validation": records}, with_masks=False)
    return directory


def test_visualize_draws_what_was_imported(tmp_path: Path, dataset: Path) -> None:
    ours = imported(tmp_path, "mae")
    with pytest.raises(UserError, match="give --data_dir=DIR"):
        run(visualize, f"--workdir={ours}")
    run(visualize, f"--workdir={ours}", f"--data_dir={dataset}", "--num_clips=1")
    assert [path.suffix for path in (ours / "pictures").iterdir()] == [".png"]


def test_load_gives_model_parameters_features_and_logits(tmp_path: Path) -> None:
    found, expected = adamae_jax.load(imported(tmp_path, "mae_st", True)), loaded("mae_st", True)
    assert isinstance(found, pretrained.Finetuned) and isinstance(expected, pretrained.Finetuned)
    model, params = found
    assert model == expected.model
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected.params)
    video = helpers.clips(2, geometry=model.geometry)
    np.testing.assert_array_equal(found.features(video), expected.features(video))
    np.testing.assert_array_equal(found.logits(video), expected.logits(video))


def test_automae_holds_an_imported_mae_frozen(tmp_path: Path) -> None:
    """masking.options.pretrained names the model directory."""
    config = changed(config_of("mae"), data__image_size=(48, 48))
    model = experiment.pretraining(config)
    variables = helpers.variables(model)
    whole = pretrained.build(variables, config, 0, (), "", "x")
    file = tmp_path / "mae.safetensors"
    files.write_safetensors(file, exports.to_authors(whole))
    ours = bring(file, tmp_path / "mae", *given("mae"))
    automae = config_of("automae")
    with automae.unlocked():
        options = {"vit_width": 16, "vit_depth": 2, "vit_num_heads": 2, "pretrained": str(ours)}
        automae.masking = masking_config("adversarial", 0.75, **options)
    held = frozen.read(experiment.pretraining(automae))
    expected = pretrained.flatten(variables["params"]["autoencoder"]["encoder"])
    found = pretrained.flatten(held.variables["vit"])
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# The page.


def commands() -> list[list[str]]:
    """The page's ``python -m`` commands, in order."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line) for line in blocks.splitlines() if line.startswith("python ")]


def stand_ins(directory: Path, dataset: Path, suffix: str) -> None:
    """Tiny models in the place of every file that the page names."""
    automae = exports.to_authors(loaded("automae"))
    vit = {n.removeprefix("pretrained_vit."): a for n, a in automae.items() if "vit." in n}
    mae = exports.to_authors(loaded("mae"))
    states: dict[str, Any] = {
        "adamae": exports.to_authors(loaded("adamae")),
        "mae_pretrain_vit_base": {
            name: array
            for name, array in mae.items()
            if not name.startswith(("decoder_", "mask_token"))
        },
        "videomae": exports.to_authors(loaded("videomae")),
        "videomae_finetuned": exports.to_authors(loaded("videomae", True)),
        "vit_b_k710_dl_from_giant": exports.to_authors(loaded("videomae", True)),
        "mae_st": exports.to_authors(loaded("mae_st")),
        "automae": {n: a for n, a in automae.items() if "pretrained_vit." not in n},
        "vit": vit,
    }
    write = files.write_torch if suffix == ".pth" else files.write_safetensors
    for name, state in states.items():
        write(directory / f"{name}{suffix}", state)
    exports.write_hugging_face(loaded("videomae"), directory / "videomae-base")
    (directory / "labels.txt").write_text("walking\nrunning\nresting\n")
    written(directory / "runs" / "mine", "adamae")
    shutil.copytree(dataset, directory / "DIR")


# What the tiny stand-ins need beside the page's own flags, by what the page gives as their source.
MORE: dict[str, tuple[str, ...]] = {
    **{name: given(name) for name in ("adamae", "videomae", "mae_st", "automae")},
    "videomae_finetuned": given("videomae", True),
    "vit_b_k710_dl_from_giant": given("videomae", True),
    "mae_pretrain_vit_base": ("--num_heads=2",),
}
JOBS = {
    "adamae_jax.convert import": importing,
    "adamae_jax.convert export": exporting,
    "adamae_jax.visualize": visualize,
}


def small(word: str) -> str:
    """A size of the page's as the stand-ins have it."""
    sizes = {"--to_num_frames=32": "16", "--num_classes=174": "3", "--num_classes=1000": "3"}
    return re.sub(r"=.*", f"={sizes[word]}", word) if word in sizes else word


@pytest.mark.parametrize(
    "suffix", [".safetensors", pytest.param(".pth", marks=pytest.mark.interop)]
)
def test_the_page_runs(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Its commands in their order; by default with other files in the place of PyTorch's."""
    if suffix == ".pth":
        pytest.importorskip("torch")
    stand_ins(tmp_path, dataset, suffix)
    monkeypatch.chdir(tmp_path)
    done, used = set(), set[str]()
    for command in commands():
        job = " ".join(command[2:4] if command[2] == "adamae_jax.convert" else command[2:3])
        if job == "adamae_jax.pretrain":  # tests/test_whole_path.py
            continue
        words = [small(word) for word in command[len(job.split()) + 2 :]]
        words = [re.sub(r"\.pth$", suffix, word) for word in words]
        named = dict(word.removeprefix("--").split("=", 1) for word in words)
        used |= set(named)
        if job == "adamae_jax.convert import":
            words += MORE.get(Path(named["source"]).stem, ())
        run(JOBS[job], *words, *["--num_clips=1"] * (JOBS[job] is visualize))
        done.add(job)
        if "output" in named:
            assert Path(named["output"]).exists(), command
    assert done == set(JOBS)
    assert used >= {"num_classes", "label_names", "license", "pretrained_vit", "to_num_frames"}
    assert used >= {"to_image_size", "format"}


def test_the_page_names_every_flag() -> None:
    for module in (importing, exporting):
        before = set(flags.FLAGS)
        module.define_flags()
        new = set(flags.FLAGS) - before
        for name in new:
            delattr(flags.FLAGS, name)
        for name in new:
            assert f"--{name}" in PAGE, name
