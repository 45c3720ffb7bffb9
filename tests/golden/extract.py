"""Cuts a small golden file from an oracle: python -m tests.golden.extract FULL.npz SMALL.npz.

What the authors' code computed cannot be computed here, so arrays are left out, never changed: the
large outputs and most of the large gradients, and of VideoMAE, MAE-ST and AutoMAE the halves whose
weights would not fit. ``tests/parity/reference.py`` stands in for what is left out.
"""

import dataclasses
import json
import sys

import numpy as np


@dataclasses.dataclass(frozen=True)
class Kept:
    """What stays of a system's file.

    Attributes:
      parts: beginnings of the names that stay; what they hold must be enough to be compared with.
      largest: bytes of an output or gradient that stays in any case.
      whole: outputs and gradients that stay whatever their size.
    """

    parts: tuple[str, ...]
    largest: int
    whole: tuple[str, ...] = ()


CLASSIFIER = ("input/video", "input/label", "classifier/", "output/logits", "output/loss_class")
KEPT = {
    "AdaMAE": Kept(
        ("input/", "weights/", "grads/", "output/"),
        largest=4096,
        whole=(
            "grads/encoder.patch_embed.proj.weight",  # where both losses meet
            "grads/encoder.pos_embed_probs",
            "grads/encoder.get_token_probs.0.attn.qkv.weight",  # the fused layout
        ),
    ),
    "VideoMAE": Kept(CLASSIFIER, largest=1024),
    "VideoMAE V2": Kept(
        ("input/", "weights/", "grads/", "output/", "full/", "running_cell/", "tube/"),
        largest=1024,
        whole=(
            "output/token_error",
            "grads/encoder_to_decoder.weight",
            "grads/decoder.blocks.1.attn.qkv.weight",
            "grads/encoder.blocks.0.mlp.fc1.weight",
        ),
    ),
    "MAE-ST": Kept(CLASSIFIER, largest=1024),
    # From the frozen ViT's attention to the discriminator's verdict.
    "AutoMAE": Kept(
        (
            *("input/gumbel", "input/noise", "input/real_mask", "discriminator/"),
            *("model/weights/scorer_pred", "output/attention", "output/mask"),
            *("output/loss_generator", "output/loss_discriminator"),
        ),
        largest=64 * 1024,
    ),
    "VideoMAE fine-tuning": Kept(
        (
            *("input/", "weights/", "layer_id/", "lr_scale/", "weight_decay/"),
            *("cutmix/input/target", "cutmix/input/lam", "cutmix/input/centre", "cutmix/input/box"),
            *("cutmix/output/", "cutmix/grads/", "cutmix/after_3/"),
        ),
        largest=1024,
    ),
}
LARGE = ("output/", "grads/", "after_")


def extract(full: str, small: str) -> None:
    """Writes the arrays that are kept to ``small``."""
    with np.load(full) as file:
        kept = KEPT[json.loads(str(file["meta"]))["system"]]

        def stays(name: str) -> bool:
            if any(kind in name for kind in LARGE):
                small_enough = file[name].nbytes <= kept.largest or name in kept.whole
                return small_enough and name.startswith(kept.parts)
            return name == "meta" or name.startswith(kept.parts)

        arrays = {name: file[name] for name in file.files if stays(name)}
    np.savez_compressed(small, **arrays)


if __name__ == "__main__":
    extract(sys.argv[1], sys.argv[2])
