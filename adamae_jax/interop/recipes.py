"""How the authors cut clips out of their datasets, which no weights tell.

Pretraining's are those of the recipes in ``configs/``, fine-tuning's those of the authors' scripts:
github.com/MCG-NJU/VideoMAE (datasets.py, kinetics.py, ssv2.py), facebookresearch/mae (util/
datasets.py) and facebookresearch/mae_st (main_finetune.py).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from adamae_jax.errors import UserError
from adamae_jax.interop.given import Given

KINETICS, SOMETHING, IMAGENET = "Kinetics", "Something-Something V2", "ImageNet"
SOMETHING_CLASSES = 174


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How clips of one dataset are cut.

    Attributes:
      dataset: its name.
      fields: of ``config.data``.
      other_rates: ``sampling_rate`` of the authors' recipes for other datasets, by name.
    """

    dataset: str
    fields: Mapping[str, Any]
    other_rates: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def apply(self, data: ConfigDict, given: Given) -> list[str]:
        """Sets the fields, but for what is given; returns remarks for the user.

        Raises:
          UserError: where a sampling rate is given for sampling that has none.
        """
        named = {name: getattr(given, name) for name in ("sampling_rate", "frame_sampling")}
        said = {name: value for name, value in named.items() if value is not None}
        data.update({**self.fields, **said})
        if data.frame_sampling == "segments" and given.sampling_rate is not None:
            raise UserError(
                f"--sampling_rate={given.sampling_rate} says nothing of the frame_sampling "
                "'segments', which takes one frame from each of num_frames equal parts of a "
                "video: leave it out, or give --frame_sampling=dense"
            )
        assumed = {name: value for name, value in self.fields.items() if name not in said}
        rate, remarks = assumed.pop("sampling_rate", None), []
        if rate is not None and data.num_frames > 1:
            others = [f"{other} for {name}" for name, other in self.other_rates.items()]
            hint = f"; {', '.join(others)}: give --sampling_rate" if others else ""
            remarks.append(f"sampling_rate {rate}: as published for {self.dataset}{hint}")
        listed = ", ".join(f"{name} {_text(value)}" for name, value in assumed.items())
        return [*remarks, f"{listed}: as published for {self.dataset}"]


def _text(value: Any) -> str:
    return "-".join(f"{part:.3g}" for part in value) if isinstance(value, tuple) else str(value)


# Cut and resized in PyTorch, unlike MAE's images: `random_resized_crop` of VideoMAE's
# video_transforms.py, as MAE-ST's, is given tensors and calls `interpolate`, which does not filter.
# Validation and test do not either: their `Resize` is given arrays, for which functional.py's
# `resize_clip` takes OpenCV's INTER_LINEAR. Only pretraining resizes with Pillow, which does.
_RANDOM_CROPS = {
    "crop": "random_resized",
    "crop_area": (0.08, 1.0),
    "crop_aspect": (3 / 4, 4 / 3),
    "interpolation": "bilinear_without_antialias",
    "horizontal_flip": True,
}
VIDEOMAE = Recipe(
    KINETICS,
    {
        "sampling_rate": 4,
        "frame_sampling": "dense",
        "crop": "multi_scale_corner",
        "interpolation": "bilinear",
        "horizontal_flip": False,
    },
    {SOMETHING: 2},
)
MAE_ST = Recipe(
    KINETICS,
    {
        "sampling_rate": 4,
        "frame_sampling": "time_scaled",
        "target_fps": 30.0,
        **_RANDOM_CROPS,
        "crop_area": (0.5, 1.0),
    },
)
MAE = Recipe(
    IMAGENET,
    {
        "sampling_rate": 1,
        **_RANDOM_CROPS,
        "crop_area": (0.2, 1.0),
        "interpolation": "bicubic",
    },
)

# Of fine-tuning, by the number of classes; 0 for all others.
VIDEOMAE_FINE_TUNED = {
    0: Recipe(KINETICS, {"sampling_rate": 4, "frame_sampling": "stretched", **_RANDOM_CROPS}),
    SOMETHING_CLASSES: Recipe(
        SOMETHING, {"frame_sampling": "segments", **_RANDOM_CROPS, "horizontal_flip": False}
    ),
}
MAE_ST_FINE_TUNED = {
    0: Recipe(KINETICS, {**MAE_ST.fields, "crop_area": (0.08, 1.0)}),
}
MAE_FINE_TUNED = {0: Recipe(IMAGENET, {**MAE.fields, "crop_area": (0.08, 1.0)})}
