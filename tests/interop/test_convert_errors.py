"""What can go wrong in a conversion: one clear message, and nothing left behind."""

import json
from pathlib import Path

import numpy as np
import pytest
from absl import flags as absl_flags

from adamae_jax import config as configs
from adamae_jax import pretrained
from adamae_jax.errors import UserError
from adamae_jax.interop import exports, files, sources
from tests.interop.convert_cases import (
    LABELS,
    bring,
    config_of,
    export,
    given,
    loaded,
    written,
)

State = dict[str, np.ndarray]


def theirs(name: str, fine_tuned: bool = False) -> State:
    """Weights under the authors' names."""
    return exports.to_authors(loaded(name, fine_tuned))


def refused(directory: Path, state: State, message: str, *arguments: str) -> None:
    """An import of these weights fails with this message and makes nothing."""
    file, output = directory / "file.safetensors", directory / "new" / "ours"
    files.write_safetensors(file, state)
    with pytest.raises(UserError, match=message):
        bring(file, output, *arguments)
    assert not output.exists()
    assert sorted(path.name for path in directory.iterdir()) == ["file.safetensors"]


def test_all_that_is_wrong_is_listed_at_once(tmp_path: Path) -> None:
    state = theirs("videomae") | {"x": np.zeros(1), "decoder.norm.bias": np.zeros(4)}
    del state["mask_token"]
    message = "missing mask_token; not used x; misshapen decoder.norm.bias"
    refused(tmp_path, state, message, *given("videomae"))


@pytest.mark.parametrize(
    ("name", "flag", "message"),
    [
        ("videomae", "--num_heads", "16 could have any number of .* give --num_heads"),
        ("videomae", "--num_frames", "how many frames a clip has: give --num_frames"),
        ("videomae", "--image_size", "how large frames are: give --image_size"),
        ("adamae", "--image_size", "has 96 places.*: give --num_frames or --image_size"),
    ],
)
def test_what_the_weights_do_not_say_is_asked_for(
    tmp_path: Path, name: str, flag: str, message: str
) -> None:
    flags = [word for word in given(name) if not word.startswith(flag)]
    refused(tmp_path, theirs(name), message, *flags)


@pytest.mark.parametrize(
    ("name", "flag", "message"),
    [
        ("videomae", "--num_heads=3", "3 attention heads do not divide the width 16"),
        ("mae_st", "--image_size=8,12", "--image_size=8,12 does not fit pos_embed_spatial"),
        ("mae_st", "--num_frames=4", "--num_frames=4 does not fit pos_embed_temporal"),
        ("adamae", "--num_frames=4", "--num_frames=4 --image_size=16,24 does not fit"),
        ("mae_st_joint", "--num_frames=10", "--num_frames=10 .* does not fit pos_embed"),
        ("mae", "--num_frames=4", "--num_frames=4 says nothing of this model"),
        ("videomae", "--image_size=big", "--image_size=big should be height,width"),
        ("mae", "--pretrained_vit=x", "the source is no AutoMAE: leave --pretrained_vit=x out"),
        ("automae", "--pretrained_vit=x", "has a frozen ViT already: leave --pretrained_vit"),
        ("mae", "--key=model_ema", "--key=model_ema is for PyTorch checkpoints"),
    ],
)
def test_what_is_given_must_fit(tmp_path: Path, name: str, flag: str, message: str) -> None:
    refused(tmp_path, theirs(name), message, *given(name), flag)


def test_automae_without_its_vit_asks_for_it(tmp_path: Path) -> None:
    state = {name: a for name, a in theirs("automae").items() if "pretrained_vit" not in name}
    refused(tmp_path, state, "give --pretrained_vit, the checkpoint", *given("automae"))


@pytest.mark.parametrize(
    ("name", "fine_tuned", "found"),
    [
        ("videomae", False, "videomae .pretraining."),
        ("mae", True, "mae .classifier."),
    ],
)
def test_another_model_is_no_frozen_vit(
    tmp_path: Path, name: str, fine_tuned: bool, found: str
) -> None:
    state = {n: a for n, a in theirs("automae").items() if "pretrained_vit" not in n}
    files.write_safetensors(tmp_path / "automae.safetensors", state)
    files.write_safetensors(tmp_path / "other.safetensors", theirs(name, fine_tuned))
    flag = f"--pretrained_vit={tmp_path / 'other.safetensors'}"
    with pytest.raises(UserError, match=f"other.safetensors holds a model of {found}: AutoMAE's"):
        bring(tmp_path / "automae.safetensors", tmp_path / "ours", flag, *given("automae"))


@pytest.mark.parametrize("flag", ["--num_classes=99999999999", "--norm_epsilon=inf"])
def test_what_no_model_can_have_is_no_flag(tmp_path: Path, flag: str) -> None:
    """Nor may it fill the memory."""
    with pytest.raises(absl_flags.Error, match=flag.removeprefix("--").partition("=")[0]):
        bring(tmp_path / "file.safetensors", tmp_path / "ours", flag)


def test_unknown_weights_are_named(tmp_path: Path) -> None:
    message = "of no system that is known here .*: their names begin with conv1.weight"
    refused(tmp_path, {"conv1.weight": np.zeros((3, 3))}, message)


def test_classes_and_their_names_must_fit(tmp_path: Path) -> None:
    names = tmp_path / "names"
    file, output = tmp_path / "file.safetensors", tmp_path / "ours"

    def wrong(message: str, *flags: str) -> None:
        with pytest.raises(UserError, match=message):
            bring(file, output, *flags)
        assert not output.exists()

    files.write_safetensors(file, theirs("videomae", True))
    own = given("videomae", True)
    names.write_text("\n".join(LABELS[:2]))
    wrong("2 label names for 3 classes", f"--label_names={names}", *own)
    wrong("is a classifier already: leave --num_classes out", "--num_classes=3", *own)
    wrong("--label_names=.*nowhere cannot be read", f"--label_names={tmp_path / 'nowhere'}", *own)
    names.write_bytes(b"\xff\xfe\x00")
    wrong("--label_names=.* cannot be read", f"--label_names={names}", *own)
    files.write_safetensors(file, theirs("videomae"))
    names.write_text("\n".join(LABELS))
    own = given("videomae")
    wrong("names classes, and the model has none", f"--label_names={names}", *own)
    wrong("3 label names for 4 classes", f"--label_names={names}", "--num_classes=4", *own)
    bring(file, output, f"--label_names={names}", "--num_classes=3", *own)
    assert pretrained.load(output).label_names == LABELS


def test_a_model_that_describes_itself_is_given_no_sizes(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    exports.write_authors(loaded("videomae"), file)
    with pytest.raises(UserError, match="describes its model itself: leave --num_heads, --image_"):
        bring(file, tmp_path / "ours", "--num_heads=2", "--image_size=8,12")
    exports.write_hugging_face(loaded("videomae"), tmp_path / "theirs")
    (tmp_path / "theirs" / sources.DESCRIPTION_FILE).unlink()
    with pytest.raises(UserError, match="says that num_heads is 2, not 4: leave --num_heads out"):
        bring(tmp_path / "theirs", tmp_path / "ours", "--num_heads=4")
    assert not (tmp_path / "ours").exists()


def test_a_description_that_is_stale_is_refused(tmp_path: Path) -> None:
    """Somebody fine-tuned our export with transformers and saved it to the same directory."""
    theirs_at = tmp_path / "theirs"
    exports.write_hugging_face(loaded("videomae", True), theirs_at)
    config = json.loads((theirs_at / "config.json").read_text())
    config["id2label"]["0"] = "crawling"
    (theirs_at / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="remove .*adamae_jax.json, to import what transformers"):
        bring(theirs_at, tmp_path / "ours")
    (theirs_at / sources.DESCRIPTION_FILE).unlink()
    ours = pretrained.load(bring(theirs_at, tmp_path / "ours"))
    assert ours.label_names == ("crawling", *LABELS[1:])


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_description_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file.safetensors"
    files.write_safetensors(file, theirs("mae"), {sources.DESCRIPTION: text})
    with pytest.raises(UserError, match="description|what it says of the model is no JSON"):
        bring(file, tmp_path / "ours")


def test_sources_of_the_wrong_kind_are_named(tmp_path: Path) -> None:
    ours = written(tmp_path / "ours", "mae")
    with pytest.raises(UserError, match="ours is a model directory of this package"):
        bring(ours, tmp_path / "new")
    with pytest.raises(UserError, match="ours is a model directory of this package"):
        bring(ours / "model.safetensors", tmp_path / "new")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(configs.to_json(config_of("mae")))
    with pytest.raises(UserError, match=r"run is a run of this package.*init_from=.*run$"):
        bring(run, tmp_path / "new", "--num_classes=3")
    exports.write_hugging_face(loaded("mae"), tmp_path / "theirs")
    with pytest.raises(UserError, match="theirs is a model in somebody else's form: import it"):
        export(tmp_path / "theirs", tmp_path / "new.safetensors")
    exports.write_authors(loaded("mae"), tmp_path / "file.safetensors")
    with pytest.raises(UserError, match="is a model in somebody else's form: import it"):
        export(tmp_path / "file.safetensors", tmp_path / "new.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no config.json"):
        bring(tmp_path / "empty", tmp_path / "new")
    with pytest.raises(UserError, match="nowhere holds neither config.json"):
        export(tmp_path / "nowhere", tmp_path / "new.safetensors")
    with pytest.raises(UserError, match="nowhere.safetensors does not exist"):
        bring(tmp_path / "nowhere.safetensors", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    state = theirs("mae")
    wrong = {"blocks.0.norm1.bias": np.full(16, np.nan), "decoder_pred.bias": np.full(48, np.inf)}
    message = r"2 of \d+ arrays hold .*NaN or infinite: blocks.0.norm1.bias, decoder_pred.bias; "
    refused(tmp_path, state | wrong, message, *given("mae"))
