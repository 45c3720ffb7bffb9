"""What we are timed against computes what the authors' code computes, in each of its forms."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamae_jax.models.tubelets import ClipGeometry

torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("adamae_jax.benchmark.torch_models")

GOLDEN = Path(__file__).parent.parent / "golden"
# Of outputs and losses, and of gradients, relative to the whole array.
CLOSE, GRADIENT_CLOSE = 1e-5, 1e-4


def error(ours: Any, theirs: Any) -> float:
    return float((ours.detach() - theirs).norm() / theirs.norm())


def arrays(file: Any, part: str) -> dict[str, Any]:
    names = [name for name in file.files if name.startswith(part)]
    return {name.removeprefix(part): torch.from_numpy(file[name]) for name in names}


@pytest.mark.parametrize("fused", [False, True])
def test_outputs_losses_and_gradients_are_the_authors(fused: bool) -> None:
    """AdaMAE's; VideoMAE's model is the same without the sampling network."""
    file = np.load(GOLDEN / "adamae.npz")
    meta = json.loads(str(file["meta"]))
    side = meta["image_size"]
    geometry = ClipGeometry(
        meta["num_frames"], (side, side), meta["tubelet_size"], meta["patch_size"]
    )
    encoder, decoder = (
        torch_models.Stack(meta[half]["dim"], meta[half]["depth"], meta[half]["heads"])
        for half in ("encoder", "decoder")
    )
    visible = torch.from_numpy(np.sort(file["input/visible_indices"], axis=1)).long()
    model = torch_models.Pretraining(
        geometry, encoder, decoder, visible.shape[1], adaptive=True, fused=fused
    )
    model.load_state_dict(arrays(file, "weights/"))
    model.eval()  # no dropout, as in the file
    figures = model(torch.from_numpy(file["input/video_uint8"]), visible)
    outputs = arrays(file, "output/")
    assert outputs.keys() & figures.keys() >= {"probs", "token_error", "loss_total"}
    for name in outputs.keys() & figures.keys():
        assert error(figures[name], outputs[name]) < CLOSE, name

    figures["loss_total"].backward()
    gradients = arrays(file, "grads/")
    assert len(gradients) > 50
    typical = np.median([np.linalg.norm(gradient) for gradient in gradients.values()])
    for name, theirs in gradients.items():
        ours = model.get_parameter(name).grad
        if np.linalg.norm(theirs) < 1e-6 * typical:  # zero, in exact arithmetic
            assert np.linalg.norm(ours) < 1e-6 * typical, name
        else:
            assert error(ours, theirs) < GRADIENT_CLOSE, name


def test_tokens_are_drawn_once_and_tubes_are_tubes() -> None:
    geometry = ClipGeometry(8, (32, 32), 2, 8)  # 4 x 4 x 4 tokens
    size = torch_models.Stack(16, 1, 2)
    clips = torch.zeros(2, *geometry.clip_shape, dtype=torch.uint8)
    for adaptive, count in ((True, 5), (False, 12)):
        model = torch_models.Pretraining(geometry, size, size, count, adaptive=adaptive, fused=True)
        tokens = model.encoder.patch_embed(torch.zeros(2, 3, 8, 32, 32))
        if adaptive:
            drawn = model.draw(torch.full((2, 64), 1 / 64))
        else:
            drawn = model.tube(tokens)
            assert (drawn.view(2, 4, 3) % 16 == drawn.view(2, 4, 3)[:, :1] % 16).all()
        for row in drawn.tolist():
            assert len(set(row)) == count
            assert row == sorted(row)
        assert torch.isfinite(model(clips)["loss_total"])
        masked = torch_models.others(drawn, 64)
        for seen, unseen in zip(drawn.tolist(), masked.tolist(), strict=True):
            assert sorted(seen + unseen) == list(range(64))
            assert unseen == sorted(unseen)
