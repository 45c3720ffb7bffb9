"""What the authors published beside their weights: sizes and choices that no array tells."""

import dataclasses

# Attention heads by (width, depth), in the models that the authors published.
ENCODER_HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16}
DECODER_HEADS = {
    "videomae": {(192, 4): 3, (384, 4): 6, (512, 12): 8, (640, 12): 8},
    "mae": {(512, 8): 16},
    "mae_st": {(512, 4): 16, (512, 8): 16},
}
PUBLISHED_FRAMES, PUBLISHED_SIDE = 16, 224


@dataclasses.dataclass(frozen=True)
class System:
    """What the weights of a system do not say.

    Attributes:
      family: of `adamae_jax.config.FAMILIES`.
      masking: the strategy.
      mask_ratio: of the authors' recipe.
      normalize_targets: likewise.
      target_pixels: likewise.
      pixels: mean and standard deviation of the input, likewise.
    """

    family: str
    masking: str
    mask_ratio: float
    normalize_targets: str = "channel"
    target_pixels: str = "unit"
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None


_MAE = System("mae", "random", 0.75, "tubelet", "normalized")

SYSTEMS = {
    "adamae": System("videomae", "adaptive", 0.95),
    "videomae": System("videomae", "tube", 0.9),
    "mae": _MAE,
    "automae": dataclasses.replace(_MAE, masking="adversarial"),
    "mae_st": System("mae_st", "random", 0.9, "tubelet", "normalized", ((0.45,) * 3, (0.225,) * 3)),
}
