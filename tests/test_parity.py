"""The comparison with the authors' code: on what they computed, and on files of our own."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity import __main__ as command
from tests.parity import comparison as parity
from tests.parity import finetune
from tests.parity.parts import section
from tests.parity.reference_files import adamae_file

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.smoke
def test_agrees_with_what_the_authors_code_computed() -> None:
    file = GOLDEN / "adamae.npz"
    done = subprocess.run(
        [sys.executable, "-m", "tests.parity", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    report = json.loads(done.stdout)
    assert report["system"] == "AdaMAE"
    assert report["passed"] is True
    assert report["outputs"]["relative_error"] < parity.OUTPUT_TOLERANCE
    assert report["losses"]["relative_error"] < parity.OUTPUT_TOLERANCE
    assert report["gradients"]["relative_error"] < parity.GRADIENT_TOLERANCE
    assert (report["outputs"]["arrays"], report["losses"]["arrays"]) == (3, 3)
    assert report["gradients"]["arrays"] == 71


@pytest.mark.parametrize(("name", "gradients"), [("videomae", 32), ("mae_st", 38)])
def test_classifiers_agree_with_what_the_authors_code_computed(name: str, gradients: int) -> None:
    report = parity.compare(str(GOLDEN / f"{name}.npz"))
    assert report["passed"], report
    assert (report["outputs"]["arrays"], report["losses"]["arrays"]) == (1, 1)
    assert report["gradients"]["arrays"] == gradients


def test_both_masks_agree_with_what_the_authors_code_computed() -> None:
    """VideoMAE V2: nine tables of running cells, tubes, and the loss under both masks."""
    report = parity.compare(str(GOLDEN / "video_mae_v2.npz"))
    assert report["passed"], report
    assert report["system"] == "VideoMAE V2"
    assert report["outputs"]["arrays"] == 9 + 2 + 2  # and decoder_mask, token_error
    assert report["losses"]["arrays"] == 3
    assert report["gradients"]["arrays"] == 54


def test_fine_tuning_agrees_with_what_the_authors_code_computed() -> None:
    report = parity.compare(str(GOLDEN / "finetune_step.npz"))
    assert report["passed"], report
    assert report["outputs"]["arrays"] == 3 * 45 + 3
    assert (report["losses"]["arrays"], report["gradients"]["arrays"]) == (2, 32)
    assert report["updates"]["arrays"] == 32


def test_weight_decay_of_one_parameter_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The updates agree because they are right, not because the tolerance is wide."""
    monkeypatch.setattr(finetune, "DECAY", (r"(?<!head/)kernel$",))
    report = parity.compare(str(GOLDEN / "finetune_step.npz"))
    assert not report["passed"]
    assert report["updates"]["worst"] == "cutmix/after_3/head.weight"


META = {
    "system": "AdaMAE",
    "image_size": [8, 12],  # not square, as those of the authors are
    "patch_size": 4,
    "tubelet_size": 3,
    "num_frames": 6,
    "encoder": {"dim": 16, "depth": 1, "heads": 2},
    "decoder": {"dim": 12, "depth": 3, "heads": 3},
    "sampler": {"heads": 2},
    "mask_ratio": 0.7,
    "sampling_loss_weight": 0.01,
    "norm_eps": {"encoder": 1e-6, "decoder": 1e-4, "sampler": 1e-5},
}


@functools.cache
def own_file() -> dict[str, np.ndarray]:
    """A whole file of other sizes, computed by a second writing of the authors' method."""
    return adamae_file(META)


def save(path: Path, file: dict[str, Any], **changes: np.ndarray) -> str:
    """Writes a file with some arrays changed."""
    np.savez(path, **{**file, **changes})
    return str(path)


def test_works_with_other_sizes(tmp_path: Path) -> None:
    report = parity.compare(save(tmp_path / "own.npz", own_file()))
    assert report["passed"], report


def test_a_wrong_weight_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = own_file()
    name = "weights/decoder.blocks.2.mlp.fc1.bias"
    path = save(tmp_path / "wrong.npz", file, **{name: file[name] + 0.01})
    assert command.main([path]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    assert report["outputs"]["worst"] in ("pred_masked", "token_error")
    assert report["outputs"]["relative_error"] > parity.OUTPUT_TOLERANCE


def sides(file: dict[str, np.ndarray]) -> tuple[parity.Comparison, parity.Comparison]:
    """A file compared with itself."""
    outputs, grads = section(file, "output/"), section(file, "grads/")
    return (dict(outputs), outputs), (dict(grads), grads)


def changed(pair: parity.Comparison, name: str, array: np.ndarray | None) -> parity.Comparison:
    """Our side with one array changed, or missing."""
    ours = {key: value for key, value in pair[0].items() if key != name}
    if array is not None:
        ours[name] = array
    return ours, pair[1]


@pytest.mark.parametrize(
    ("kind", "name", "factor", "passed"),
    [
        ("outputs", "probs", 1 + 0.9e-5, True),
        ("outputs", "probs", 1 + 1.2e-5, False),
        ("losses", "loss_sampling_weighted", 1 + 0.9e-5, True),
        ("losses", "loss_sampling_weighted", 1 + 1.2e-5, False),
        ("gradients", "mask_token", 1 + 0.9e-4, True),
        ("gradients", "mask_token", 1 + 1.2e-4, False),
        ("gradients", "encoder.pos_embed_probs", 1 + 1.2e-4, False),
    ],
)
def test_the_tolerance_is_that_of_the_oracles(
    kind: str, name: str, factor: float, passed: bool
) -> None:
    outputs, gradients = sides(own_file())
    if kind == "gradients":
        gradients = changed(gradients, name, gradients[1][name].astype(np.float64) * factor)
    else:
        outputs = changed(outputs, name, outputs[1][name].astype(np.float64) * factor)
    report = parity.judge("AdaMAE", outputs, gradients)
    assert report["passed"] is passed
    assert report[kind]["worst"] == name
    assert report[kind]["relative_error"] == pytest.approx(factor - 1, rel=1e-3)


@pytest.mark.parametrize("wrong", ["missing", "shape", "nan"])
@pytest.mark.parametrize("kind", ["outputs", "gradients"])
def test_missing_misshapen_and_infinite_arrays_fail(kind: str, wrong: str) -> None:
    outputs, gradients = sides(own_file())
    pair, name = (outputs, "probs") if kind == "outputs" else (gradients, "encoder.norm.weight")
    theirs = pair[1][name]
    array = {"missing": None, "shape": theirs[..., None], "nan": np.full_like(theirs, np.nan)}
    pair = changed(pair, name, array[wrong])
    outputs, gradients = (pair, gradients) if kind == "outputs" else (outputs, pair)
    report = parity.judge("AdaMAE", outputs, gradients)
    assert report["passed"] is False
    assert name in report[kind]["worst"]
    assert report[kind]["relative_error"] is None
    assert "Infinity" not in json.dumps(report)


def test_gradients_of_rounding_noise_must_be_noise_in_ours() -> None:
    outputs, gradients = sides(own_file())
    name = "encoder.get_token_probs.1.bias"
    median = np.median([np.linalg.norm(array) for array in gradients[1].values()])
    theirs = {**gradients[1], name: np.asarray([0.5e-6 * median])}
    for ours, passed in ((-0.9e-6 * median, True), (1.1e-6 * median, False), (np.nan, False)):
        pair = ({**gradients[0], name: np.asarray([ours])}, theirs)
        report = parity.judge("AdaMAE", outputs, pair)
        assert report["passed"] is passed
    without = changed((gradients[0], theirs), name, None)
    assert parity.judge("AdaMAE", outputs, without)["passed"] is False


def test_an_extract_is_compared_as_far_as_it_goes_but_must_hold_something() -> None:
    (ours, theirs), gradients = sides(own_file())
    few = {name: theirs[name] for name in ("probs", "loss_total")}
    report = parity.judge("AdaMAE", (ours, few), gradients)
    assert report["passed"] is True
    assert (report["outputs"]["arrays"], report["losses"]["arrays"]) == (1, 1)
    report = parity.judge("AdaMAE", (ours, {"loss_total": theirs["loss_total"]}), gradients)
    assert report["passed"] is False


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["No such file"]),
        (b"no archive", ["not a readable .npz"]),
        ({"a": np.ones(1)}, ["not a readable .npz", "meta"]),
        ({"meta": np.asarray('{"system": "MAE"}')}, ["of system 'MAE'", "AdaMAE"]),
        ({"meta": np.asarray('{"system": "AdaMAE"}')}, ["no array named weights/*"]),
    ],
    ids=["missing", "garbage", "no meta", "other system", "empty"],
)
def test_files_that_cannot_be_compared_with_are_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, words: list[str]
) -> None:
    path = tmp_path / "file.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    assert command.main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert all(word in captured.err for word in [str(path), *words])


def test_the_authors_names_must_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = {name: a for name, a in own_file().items() if name != "weights/mask_token"}
    assert command.main([save(tmp_path / "less.npz", file)]) == 2
    assert "missing mask_token" in capsys.readouterr().err
    meta = json.loads(str(own_file()["meta"]))
    del meta["decoder"]
    path = save(tmp_path / "short.npz", own_file(), meta=np.asarray(json.dumps(meta)))
    assert command.main([path]) == 2
    assert "lacks 'decoder'" in capsys.readouterr().err


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert "usage" in capsys.readouterr().err
