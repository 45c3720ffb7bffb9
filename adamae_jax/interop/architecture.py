"""Which model a state dict belongs to: system and sizes, from names and shapes.

What shapes do not say (attention heads, the clip's size where no position table tells it) is known
for the sizes that were published (`published`); for others it has to be given.
"""

import dataclasses

from ml_collections import ConfigDict

from adamae_jax.config import default_config, masking_config, set_family
from adamae_jax.errors import UserError
from adamae_jax.interop import published
from adamae_jax.interop.dialects import Dialect
from adamae_jax.interop.given import Given, Kind
from adamae_jax.interop.safetensors_files import StateDict
from adamae_jax.interop.sizes import Sizes
from adamae_jax.interop.systems import SYSTEMS, System


@dataclasses.dataclass(frozen=True)
class Inferred:
    """A model's description.

    Attributes:
      system: one of `SYSTEMS`.
      kind: which part of it there is.
      config: the experiment it would be.
      remarks: what was taken from the published models, for the user to know.
      clips: likewise, how clips are cut (`adamae_jax.interop.recipes`).
    """

    system: str
    kind: Kind
    config: ConfigDict
    remarks: tuple[str, ...]
    clips: tuple[str, ...]


def detect(state: StateDict) -> tuple[str, Kind]:
    """The system, and what of it there is.

    Raises:
      UserError: where the names are those of none.
    """
    has = Sizes(state, Given()).has
    for name, system in SYSTEMS.items():
        if has(*system.marks):
            return name, "pretraining"
    for name, system in SYSTEMS.items():
        kind = None if system.marks else system.dialect.recognise(has)
        if kind is not None:
            return name, kind
    shown = ", ".join(sorted(state)[:5])
    raise UserError(
        f"the weights are of no system that is known here ({', '.join(SYSTEMS)}): their names "
        f"begin with {shown}"
    )


def infer(state: StateDict, given: Given) -> Inferred:
    """The model that a state dict belongs to.

    Args:
      state: the weights under the authors' names.
      given: what is known beside them; it goes before what would be inferred.

    Raises:
      UserError: where it is none that is known here, or something has to be given, or is given and
        contradicts the weights or what else is given.
    """
    name, kind = detect(state)
    _check_given(name, kind, given)
    system, sizes = SYSTEMS[name], Sizes(state, given)
    config = default_config()
    with config.unlocked():
        set_family(config.model, system.dialect.family)
        _set_encoder(config.model, sizes, system, kind)
        if kind == "pretraining":
            _set_decoder(config.model, sizes, system.dialect)
        _set_blocks(config.model, sizes, system.dialect, kind)
        system.set_clip(sizes, config)
        _set_objective(config.objective, system, given)
        if kind == "classifier":
            _set_classifier(config, sizes, system.dialect)
        recipe = system.recipe_of(config.classifier.num_classes)
        clips = recipe.apply(config.data, given)
        ratio = system.mask_ratio if given.mask_ratio is None else given.mask_ratio
        if given.mask_ratio is None and kind == "pretraining":
            sizes.remarks.append(f"mask_ratio {ratio}: as published")
        options = system.masking_options(sizes, config)
        config.masking = masking_config(system.masking, ratio, **options)
    return Inferred(name, kind, config, tuple(sizes.remarks), tuple(clips))


def _check_given(name: str, kind: Kind, given: Given) -> None:
    """Raises a `UserError` where a size is given that the model does not have."""
    foreign = {
        "decoder_num_heads": kind != "pretraining",
        "mask_ratio": kind != "pretraining",
        "num_frames": SYSTEMS[name].dialect.is_image and given.num_frames != 1,
    }
    for field in ("sampling_rate", "frame_sampling"):
        foreign[field] = SYSTEMS[name].dialect.is_image
    for field in {field for system in SYSTEMS.values() for field in system.own_given}:
        foreign[field] = field not in SYSTEMS[name].own_given
    for field, is_foreign in foreign.items():
        if is_foreign and getattr(given, field) is not None:
            what = {"encoder": "encoder alone", "classifier": "classifier"}.get(kind, "model")
            raise UserError(
                f"--{field}={getattr(given, field)} says nothing of this {what} ({name}): leave it "
                "out"
            )


def _set_encoder(model: ConfigDict, sizes: Sizes, system: System, kind: Kind) -> None:
    prefix, is_image = system.dialect.prefix(kind), system.dialect.is_image
    kernel = sizes.shape(f"{prefix}patch_embed.proj.weight", 4 if is_image else 5)
    model.tubelet_size, model.patch_size = (1 if is_image else kernel[2]), kernel[-1]
    heads = sizes.given.num_heads or system.num_heads(sizes)
    known = published.ENCODER_HEADS
    model.encoder.update(sizes.blocks(f"{prefix}blocks.", "num_heads", heads, known))


def _set_decoder(model: ConfigDict, sizes: Sizes, dialect: Dialect) -> None:
    prefix, heads = dialect.decoder.blocks.format(""), sizes.given.decoder_num_heads
    known = published.DECODER_HEADS[dialect.family]
    model.decoder.update(sizes.blocks(prefix, "decoder_num_heads", heads, known))


def _set_blocks(model: ConfigDict, sizes: Sizes, dialect: Dialect, kind: Kind) -> None:
    """What encoder and decoder share."""
    given, stacks = sizes.given, [f"{dialect.prefix(kind)}blocks."]
    own = [name for name in sizes.state if name.startswith(stacks[0])]
    if any("gamma_" in name for name in own):
        model.layer_scale = 1.0  # where it starts no longer matters
    biases = dialect.attention.biases
    if not any(name.endswith(biases) for name in own):
        model.attention_bias = ""
    if kind == "pretraining":
        stacks.append(dialect.decoder.blocks.format(""))
    model.mlp_ratio = sizes.mlp_ratio(*stacks)
    if given.norm_epsilon is not None:
        model.norm_epsilon = given.norm_epsilon
    decoder_epsilon = given.decoder_norm_epsilon
    model.decoder_norm_epsilon = model.norm_epsilon if decoder_epsilon is None else decoder_epsilon


def _set_objective(objective: ConfigDict, system: System, given: Given) -> None:
    objective.normalize_targets = given.normalize_targets or system.normalize_targets
    objective.target_pixels = system.target_pixels
    pixels = given.pixels or system.pixels
    if pixels is not None:
        objective.pixel_mean, objective.pixel_std = pixels


def _set_classifier(config: ConfigDict, sizes: Sizes, dialect: Dialect) -> None:
    classifier, model = config.classifier, config.model
    classifier.num_classes, _ = sizes.shape("head.weight", 2)
    epsilon = sizes.given.classifier_norm_epsilon
    classifier.norm_epsilon = model.norm_epsilon if epsilon is None else epsilon
    # How it pools, its last norm's name tells: in no dialect is one name that of both.
    for pooling, norm in dialect.classifier_norms.items():
        if sizes.has(f"{norm}."):
            classifier.pooling = pooling
            break
    classifier.skip_first_patch = dialect.drops_first_token and model.class_token == "none"
    if dialect.trains_positions:
        model.positions = "learned"
