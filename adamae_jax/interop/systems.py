"""The systems: what the authors published beside their weights, and what only their arrays tell.

A new system is a new entry in `SYSTEMS`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from adamae_jax.errors import UserError
from adamae_jax.interop import dialects, published, recipes
from adamae_jax.interop.dialects import Dialect
from adamae_jax.interop.given import Given
from adamae_jax.interop.recipes import Recipe
from adamae_jax.interop.sizes import Sizes, check_heads, contradiction

# What the names of AutoMAE's networks begin with; the first two have files of their own.
DISCRIMINATOR, VIT, GENERATOR = "discriminator.", "pretrained_vit.", "scorer_pred."
SAMPLER, SAMPLER_TABLE = "encoder.get_token_probs.", "encoder.pos_embed_probs"


def no_options(sizes: Sizes, config: ConfigDict) -> dict[str, Any]:
    """Of masking without parameters."""
    del sizes, config
    return {}


def heads_untold(sizes: Sizes) -> int | None:
    """Of most systems no array tells the encoder's attention heads."""
    del sizes
    return None


@dataclasses.dataclass(frozen=True)
class System:
    """What the weights of a system do not say, and how to read what they do.

    Attributes:
      dialect: how its weights are called.
      masking: the strategy.
      mask_ratio: of the authors' recipe.
      set_clip: reads frames and image size, and what position tables tell, into a config.
      recipe: how the authors cut clips in pretraining.
      fine_tuning: likewise in fine-tuning, by the number of classes; 0 for all others.
      normalize_targets: of the authors' recipe.
      target_pixels: likewise.
      pixels: mean and standard deviation of the input, likewise; None for ImageNet's.
      marks: what names of this system begin with, and of no other in its dialect.
      own_given: fields of `Given` that other systems have not, and the field of the config that
        each is.
      masking_options: reads the options of the masking.
      num_heads: reads the encoder's attention heads, where an array tells them.
    """

    dialect: Dialect
    masking: str
    mask_ratio: float
    set_clip: Callable[[Sizes, ConfigDict], None]
    recipe: Recipe
    fine_tuning: Mapping[int, Recipe]
    normalize_targets: str = "channel"
    target_pixels: str = "unit"
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    marks: tuple[str, ...] = ()
    own_given: Mapping[str, str] = dataclasses.field(default_factory=dict)
    masking_options: Callable[[Sizes, ConfigDict], dict[str, Any]] = no_options
    num_heads: Callable[[Sizes], int | None] = heads_untold

    def recipe_of(self, num_classes: int) -> Recipe:
        """How clips are cut, for a classifier of so many classes; 0: for pretraining."""
        if not num_classes:
            return self.recipe
        return self.fine_tuning.get(num_classes, self.fine_tuning[0])


# Clips.


def untold_clip(sizes: Sizes, config: ConfigDict) -> None:
    """VideoMAE's tables are fixed, and not in the file."""
    model, data = config.model, config.data
    data.num_frames, data.image_size = sizes.clip(model.tubelet_size, model.patch_size)


def sampled_clip(sizes: Sizes, config: ConfigDict) -> None:
    """AdaMAE's sampler has a table over all tokens."""
    if SAMPLER_TABLE not in sizes.state:
        untold_clip(sizes, config)  # it will be missed when all arrays are accounted for
        return
    model, data, tokens = config.model, config.data, sizes.shape(SAMPLER_TABLE, 3)[1]
    data.num_frames, data.image_size = sizes.clip_of(
        SAMPLER_TABLE, tokens, model.tubelet_size, model.patch_size
    )


def image_clip(sizes: Sizes, config: ConfigDict) -> None:
    """MAE's table has a row for each patch, after the class token's."""
    places = sizes.shape("pos_embed", 3)[1] - 1
    config.data.num_frames = 1
    config.data.image_size = sizes.image(places, config.model.patch_size, "pos_embed")


def spacetime_clip(sizes: Sizes, config: ConfigDict) -> None:
    """MAE-ST's tables, class token and, in pretraining, how many frames are predicted."""
    model, data = config.model, config.data
    t, p = model.tubelet_size, model.patch_size
    if not sizes.has("cls_token"):
        model.class_token = "none"
    if sizes.has("pos_embed_spatial"):
        places = sizes.shape("pos_embed_spatial", 3)[1]
        steps = sizes.shape("pos_embed_temporal", 3)[1]
        data.image_size = sizes.image(places, p, "pos_embed_spatial")
        if sizes.given.num_frames not in (None, steps * t):
            said = f"--num_frames={sizes.given.num_frames}"
            raise contradiction(said, "pos_embed_temporal", steps)
        data.num_frames = steps * t
    else:
        model.positions = "learned"
        places = sizes.shape("pos_embed", 3)[1] - (model.class_token != "none")
        data.num_frames, data.image_size = sizes.clip_of("pos_embed", places, t, p)
    if sizes.has("decoder_"):
        values, _ = sizes.shape("decoder_pred.weight", 2)
        channels = sizes.shape("patch_embed.proj.weight", 5)[1]
        depth = values // (p * p * channels)
        model.predicted_frames = 0 if depth == t else depth * (data.num_frames // t)


# Masking.


def sampler_options(sizes: Sizes, config: ConfigDict) -> dict[str, Any]:
    """AdaMAE's sampling network."""
    heads = sizes.given.sampler_num_heads
    if heads is None:
        heads = published.SAMPLER_HEADS
        sizes.remarks.append(f"sampler_num_heads {heads}: as in the released code")
    check_heads("sampler_num_heads", heads, config.model.encoder.width)
    return {"depth": sizes.depth(SAMPLER), "num_heads": heads}


def attention_maps(sizes: Sizes) -> int:
    """AutoMAE's generator reads as many maps as its frozen ViT, and its own encoder, have heads."""
    return sizes.shape(f"{GENERATOR}main.0.weight", 4)[1]


def told_by_maps(sizes: Sizes) -> int:
    """The encoder's heads of AutoMAE."""
    heads = attention_maps(sizes)
    sizes.remarks.append(f"num_heads {heads}: as many as attention maps are read")
    return heads


def frozen_vit_options(sizes: Sizes, config: ConfigDict) -> dict[str, Any]:
    """AutoMAE's frozen ViT."""
    depth = sizes.depth(f"{VIT}blocks.")
    if not depth:
        raise UserError(
            "the weights lack AutoMAE's frozen ViT, which the authors keep in a file of its "
            "own: give --pretrained_vit, the checkpoint of an image MAE"
        )
    heads, width = attention_maps(sizes), sizes.shape(f"{VIT}cls_token", 3)[-1]
    check_heads("pretrained_vit=FILE, one of another width", heads, width)
    vit = sizes.given.vit or Given()
    _check_vit(vit, heads, config.objective)
    epsilon = config.model.norm_epsilon if vit.norm_epsilon is None else vit.norm_epsilon
    return {
        "vit_width": width,
        "vit_depth": depth,
        "vit_num_heads": heads,
        "vit_norm_epsilon": epsilon,
    }


def _check_vit(vit: Given, heads: int, objective: ConfigDict) -> None:
    """Raises a `UserError` where AutoMAE cannot use an image MAE as what its own file says."""
    if vit.num_heads not in (None, heads):
        raise UserError(
            f"the file of --pretrained_vit says that num_heads is {vit.num_heads}, and AutoMAE's "
            f"generator reads {heads} attention maps: give an image MAE of as many heads"
        )
    own = (tuple(objective.pixel_mean), tuple(objective.pixel_std))
    if vit.pixels not in (None, own):
        raise UserError(
            f"the ViT of --pretrained_vit was trained on pixels with mean {vit.pixels[0]} and std "
            f"{vit.pixels[1]}, AutoMAE on those with {own[0]} and {own[1]}: it sees the same "
            "pixels; give an image MAE of these"
        )


_VIDEOMAE = System(
    dialect=dialects.VIDEOMAE,
    masking="tube",
    mask_ratio=0.9,
    set_clip=untold_clip,
    recipe=recipes.VIDEOMAE,
    fine_tuning=recipes.VIDEOMAE_FINE_TUNED,
)
_MAE = System(
    dialect=dialects.MAE,
    masking="random",
    mask_ratio=0.75,
    set_clip=image_clip,
    recipe=recipes.MAE,
    fine_tuning=recipes.MAE_FINE_TUNED,
    normalize_targets="tubelet",
    target_pixels="normalized",
)

SYSTEMS = {
    "adamae": dataclasses.replace(
        _VIDEOMAE,
        masking="adaptive",
        mask_ratio=0.95,
        set_clip=sampled_clip,
        marks=(SAMPLER, SAMPLER_TABLE),
        own_given={"sampler_num_heads": "masking.options.num_heads"},
        masking_options=sampler_options,
    ),
    "videomae": _VIDEOMAE,
    "mae": _MAE,
    "automae": dataclasses.replace(
        _MAE,
        masking="adversarial",
        marks=(GENERATOR,),
        masking_options=frozen_vit_options,
        num_heads=told_by_maps,
    ),
    "mae_st": System(
        dialect=dialects.MAE_ST,
        masking="random",
        mask_ratio=0.9,
        set_clip=spacetime_clip,
        recipe=recipes.MAE_ST,
        fine_tuning=recipes.MAE_ST_FINE_TUNED,
        normalize_targets="tubelet",
        target_pixels="normalized",
        pixels=((0.45,) * 3, (0.225,) * 3),
    ),
}


def classifier_system(dialect: Dialect) -> System:
    """The system of a dialect's classifiers, whatever they were pretrained as."""
    return next(
        system for system in SYSTEMS.values() if system.dialect == dialect and not system.marks
    )
