"""Our code against a second writing of the authors', at sizes and choices they gave no file of."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.parity import (
    automae,
    comparison,
    parts,
    reference_automae,
    reference_files,
    systems,
)

GOLDEN = Path(__file__).parent.parent / "golden"
COMPUTE = {
    "AdaMAE": reference_files.adamae,
    "VideoMAE": reference_files.videomae,
    "VideoMAE V2": reference_files.video_mae_v2,
    "MAE-ST": reference_files.mae_st,
}

# Nothing is square, no two sizes are alike, and encoder and decoder differ in depth and heads.
SIZES: dict[str, Any] = {
    "image_size": [8, 12],
    "patch_size": 4,
    "tubelet_size": 2,
    "num_frames": 8,
    "encoder": {"dim": 16, "depth": 1, "heads": 4},
    "decoder": {"dim": 12, "depth": 2, "heads": 3},
    "mask_ratio": 0.6,
    "num_classes": 3,
    "norm_eps": 1e-5,
}
VIDEOMAE = {**SIZES, "system": "VideoMAE", "layer_scale_init": 0.1}
V2 = {
    **SIZES,
    "system": "VideoMAE V2",
    "image_size": [8, 24],
    "num_frames": 10,  # an odd number of steps
    "decoder_mask_ratio": 0.75,
}
MAE_ST = {
    **SIZES,
    "system": "MAE-ST",
    "predicted_frames": 4,
    "separable_pos_embed": False,
    "cls_token": True,
    "norm_pix": True,
    "pixel_mean": 0.4,
    "pixel_std": 0.3,
}
AUTOMAE = {
    "system": "AutoMAE",
    "image_size": [28, 32],
    "patch_size": 2,
    "encoder": SIZES["encoder"],
    "decoder": {"dim": 12, "depth": 1, "heads": 3},
    "mask_ratio": 0.7,
    "mask_factor": 0.4,
    "adversarial_weight": 0.3,
    "gumbel_tau": 0.8,
    "norm_eps": 1e-5,
}
VIT = {"dim": 24, "depth": 2, "heads": 6}

VARIANTS: dict[str, Any] = {
    "two masks and five steps": functools.partial(reference_files.video_mae_v2_file, V2),
    "LayerScale": functools.partial(reference_files.videomae_file, VIDEOMAE),
    "joint table and class token": functools.partial(reference_files.mae_st_file, MAE_ST),
    "separable tables alone, raw pixels": functools.partial(
        reference_files.mae_st_file,
        {
            **{**MAE_ST, "separable_pos_embed": True, "cls_token": False},
            **{"predicted_frames": 8, "norm_pix": False},
        },
    ),
    "another ViT and a grid of 14 x 16": functools.partial(
        reference_automae.automae_file, AUTOMAE, VIT
    ),
}
# A weight that only this variant has, or has in this form, and an output that it reaches.
WEIGHTS = {
    "two masks and five steps": ("weights/mask_token", "output/pred_decoded"),
    "LayerScale": ("pretrain/weights/decoder.blocks.1.gamma_2", "pred_masked"),
    "joint table and class token": ("pretrain/weights/decoder_cls_token", "pred"),
    "separable tables alone, raw pixels": ("pretrain/weights/decoder_pos_embed_temporal", "pred"),
    "another ViT and a grid of 14 x 16": (
        "pretrained_vit/weights/blocks.1.attn.qkv.weight",
        "attention",
    ),
}


def is_result(name: str) -> bool:
    """Whether an array was computed, rather than given."""
    return "output/" in name or "grads/" in name


@pytest.mark.parametrize("name", ["adamae", "videomae", "video_mae_v2", "mae_st"])
def test_the_reference_agrees_with_what_the_authors_code_computed(name: str) -> None:
    file, meta = comparison.read(str(GOLDEN / f"{name}.npz"))
    found = COMPUTE[meta["system"]](file, meta)
    theirs = {name: array for name, array in file.items() if is_result(name)}
    assert len(theirs) > 30
    for name, array in theirs.items():
        ours, size = np.asarray(found[name]), np.linalg.norm(array.astype(np.float64))
        # Gradients that are zero in exact arithmetic are rounding noise in both.
        error = np.linalg.norm(ours.astype(np.float64) - array)
        assert error <= 1e-5 * size + 1e-8, name


@functools.cache
def file_of(variant: str) -> dict[str, Any]:
    """A whole file."""
    return VARIANTS[variant]()


@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees(variant: str, tmp_path: Path) -> None:
    file = file_of(variant)
    path = tmp_path / "file.npz"
    np.savez(path, **file)
    report = comparison.compare(str(path))
    assert report["passed"], report
    compared = sum(report[kind]["arrays"] for kind in ("outputs", "losses", "gradients"))
    masks = sum(name == "input/decoder_mask" or name.endswith("/masks") for name in file)
    assert compared == sum(map(is_result, file)) + masks


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_wrong_weight_fails(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outputs_only(loss: Any, params: Any, table: Any) -> Any:
        return jax.jit(loss)(params)[1], {}

    for module in (parts, systems, automae):
        monkeypatch.setattr(module, "gradients_of", outputs_only)
    file, (weight, output) = file_of(variant), WEIGHTS[variant]
    path = tmp_path / "file.npz"
    np.savez(path, **{**file, weight: file[weight] * np.float32(1.03)})
    report = comparison.compare(str(path))
    assert report["passed"] is False
    assert report["outputs"]["worst"] == output, json.dumps(report)
    assert 1e-5 < report["outputs"]["relative_error"] < 1
