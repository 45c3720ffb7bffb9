"""Which model weights belong to: the published ones without a word, others with what is asked."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example
from hypothesis import given as examples
from hypothesis import strategies as st

from adamae_jax import experiment
from adamae_jax.config import SIZES, default_config, set_size
from adamae_jax.errors import UserError
from adamae_jax.interop import architecture
from adamae_jax.interop.architecture import infer
from adamae_jax.interop.imports import table_of
from adamae_jax.interop.systems import SYSTEMS
from adamae_jax.interop.weight_reader import ImportOptions, WeightReader
from configs import adamae_k400, mae_imagenet, mae_st_k400, videomae_k400, videomae_v2_hybrid
from tests.parity import reference_weights
from tests.parity.reference_weights import Shapes

# Width, depth and heads of MAE's and MAE-ST's encoders, and of their decoders.
MAE = {"B": (768, 12, 12), "L": (1024, 24, 16), "H": (1280, 32, 16)}
MAE_DECODER, MAE_ST_DECODER = (512, 8, 16), (512, 4, 16)


def arrays(shapes: Shapes) -> dict[str, np.ndarray]:
    """Arrays of these shapes that take no memory."""
    zero = np.zeros((), np.float32)
    return {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}


def meta_of(encoder: Any, decoder: Any, **more: Any) -> dict[str, Any]:
    parts = {
        name: dict(zip(("dim", "depth", "heads"), sizes, strict=True))
        for name, sizes in (("encoder", encoder), ("decoder", decoder))
    }
    size: dict[str, Any] = {"image_size": 224, "patch_size": 16}
    return {**size, **parts, "num_classes": 400, **more}


VIDEO = {"num_frames": 16, "tubelet_size": 2}
MAE_ST = {**VIDEO, "separable_pos_embed": True, "cls_token": True, "predicted_frames": 8}


def published(system: str, size: str) -> Shapes:
    """What the authors' checkpoint of a size holds."""
    if system in ("videomae", "adamae"):
        meta = meta_of(*SIZES[size], **VIDEO)
        shapes = reference_weights.videomae_shapes(meta, "qv")
        sampler = reference_weights.sampler_shapes({**meta, "sampler": {"depth": 1}})
        return shapes | (sampler if system == "adamae" else {})
    if system == "mae_st":
        return reference_weights.mae_shapes(meta_of(MAE[size], MAE_ST_DECODER, **MAE_ST))
    return reference_weights.mae_shapes(meta_of(MAE[size], MAE_DECODER))


@pytest.mark.parametrize(
    ("system", "size"),
    [
        *(("videomae", size) for size in "SBLH"),
        *(("adamae", size) for size in "SBLH"),
        *((system, size) for system in ("mae", "mae_st") for size in "BLH"),
    ],
)
def test_published_sizes_need_no_word(system: str, size: str) -> None:
    found = infer(arrays(published(system, size)), ImportOptions())
    assert (found.system, found.kind) == (system, "pretraining")
    config = found.config
    part = config.model.encoder
    width, depth, heads = SIZES[size][0] if size == "S" else MAE[size]
    assert (part.width, part.depth, part.num_heads) == (width, depth, heads)
    is_image = system == "mae"
    assert config.data.num_frames == (1 if is_image else 16)
    assert tuple(config.data.image_size) == (224, 224)
    if not is_image and system != "mae_st":
        expected = default_config()
        set_size(expected.model, size)
        assert config.model.decoder.to_dict() == expected.model.decoder.to_dict()
    assert config.model.predicted_frames == (8 if system == "mae_st" else 0)
    assert config.masking.mask_ratio == SYSTEMS[system].mask_ratio
    experiment.pretraining(config)  # which checks that all of it goes together
    assert f"num_heads {heads}: as in the published model of this size" in found.remarks
    assert f"mask_ratio {SYSTEMS[system].mask_ratio}: as published" in found.remarks


V2_DECODER = (512, 4, 8)


def video_mae_v2(size: str) -> Shapes:
    """What VideoMAE V2's checkpoint of a size holds."""
    decoder = SIZES[size][1] if size == "B" else V2_DECODER
    patch = {"patch_size": 14} if size == "g" else {}
    meta = meta_of(SIZES[size][0], decoder, **VIDEO | patch)
    shapes = reference_weights.videomae_shapes(meta, "qv")
    if size != "g":
        return shapes
    hidden = {4 * 1408: 6144, 4 * 512: 2234}  # int(48 / 11 * width)
    return {
        name: tuple(hidden.get(length, length) for length in shape) if "mlp" in name else shape
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("size", ["L", "H", "g"])
def test_the_sizes_of_v2_tell_its_masks(size: str) -> None:
    found = infer(arrays(video_mae_v2(size)), ImportOptions())
    assert (found.system, found.kind) == ("videomae_v2", "pretraining")
    config = found.config
    recipe = videomae_v2_hybrid.get_config(size)
    assert config.masking.to_dict() == recipe.masking.to_dict()
    for part in ("encoder", "decoder"):
        assert config.model[part].to_dict() == recipe.model[part].to_dict()
        width = config.model[part].width
        assert int(width * config.model.mlp_ratio) == int(width * recipe.model.mlp_ratio)
    assert experiment.geometry(config) == experiment.geometry(recipe)
    for name in CLIPS:
        assert config.data[name] == recipe.data[name], name
    assert sorted(table_of(config).names) == sorted(video_mae_v2(size))


def test_a_pretrained_b_of_v2_is_taken_for_videomaes() -> None:
    assert architecture.detect(arrays(video_mae_v2("B"))) == ("videomae", "pretraining")
    assert video_mae_v2("B") == published("videomae", "B")


@pytest.mark.parametrize("size", ["S", "B", "g"])
def test_classifiers_of_v2_need_no_word(size: str) -> None:
    """The distilled S and B, and the g that taught them: 710 classes, in names VideoMAE's."""
    patch = {"patch_size": 14} if size == "g" else {}
    meta = {**meta_of(SIZES[size][0], V2_DECODER, **VIDEO | patch), "num_classes": 710}
    shapes = video_mae_v2(size) if size == "g" else published("videomae", size)
    state = arrays(reference_weights.classifier_shapes(meta, shapes))
    found = infer(state, ImportOptions())
    assert found.kind == "classifier"
    config = found.config
    assert (config.classifier.num_classes, config.classifier.pooling) == (710, "mean")
    assert config.data.frame_sampling == "stretched"
    part = config.model.encoder
    assert (part.width, part.depth, part.num_heads) == SIZES[size][0]
    assert experiment.geometry(config).grid == ((8, 16, 16) if size == "g" else (8, 14, 14))
    assert sorted(table_of(config).names) == sorted(state)


def test_every_guess_is_said() -> None:
    found = infer(arrays(published("adamae", "B")), ImportOptions())
    assert sorted(found.remarks + found.clip_remarks) == [
        "decoder_num_heads 6: as in the published model of this size",
        "frame_sampling dense, crop multi_scale_corner, interpolation bilinear, horizontal_flip "
        "False: as published for Kinetics",
        "image_size 224,224: as published",
        "mask_ratio 0.95: as published",
        "num_frames 16: as published",
        "num_heads 12: as in the published model of this size",
        "sampler_num_heads 8: as in the released code",
        "sampling_rate 4: as published for Kinetics; 2 for Something-Something V2: give "
        "--sampling_rate",
    ]


def test_what_is_given_is_no_guess() -> None:
    given = ImportOptions(
        num_frames=16,
        image_size=(224, 224),
        sampling_rate=2,
        frame_sampling="stretched",
        num_heads=12,
        decoder_num_heads=6,
        sampler_num_heads=8,
        mask_ratio=0.9,
        norm_epsilon=1e-5,
    )
    found = infer(arrays(published("adamae", "B")), given)
    crop = "crop multi_scale_corner, interpolation bilinear, horizontal_flip False"
    assert found.remarks == ()
    assert found.clip_remarks == (f"{crop}: as published for Kinetics",)
    assert (found.config.data.sampling_rate, found.config.data.frame_sampling) == (2, "stretched")
    assert found.config.masking.mask_ratio == 0.9
    assert found.config.model.norm_epsilon == 1e-5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (ImportOptions(num_frames=8), (8, (320, 320))),
        (ImportOptions(image_size=(160, 320)), (16, (160, 320))),
        (ImportOptions(num_frames=8, image_size=(320, 320)), (8, (320, 320))),
    ],
)
def test_a_table_over_all_tokens_needs_half_a_word(given: ImportOptions, expected: Any) -> None:
    shapes = published("adamae", "B")
    shapes["encoder.pos_embed_probs"] = (1, 1600, 768)
    data = infer(arrays(shapes), given).config.data
    assert (data.num_frames, tuple(data.image_size)) == expected


def test_kinds_are_told_apart() -> None:
    for system in ("videomae", "mae", "mae_st"):
        shapes = published(system, "B")
        meta = meta_of(MAE["B"], MAE_DECODER, **(VIDEO if system == "videomae" else {}))
        classifier = reference_weights.classifier_shapes(meta, shapes)
        prefix = "encoder." if system == "videomae" else ""
        encoder = reference_weights.encoder_only(shapes, prefix)
        kinds = {"pretraining": shapes, "classifier": classifier, "encoder": encoder}
        for kind, held in kinds.items():
            assert architecture.detect(arrays(held)) == (system, kind)


CLIPS = (
    *("sampling_rate", "frame_sampling", "target_fps", "crop", "crop_area", "crop_aspect"),
    *("interpolation", "horizontal_flip"),
)


@pytest.mark.parametrize(
    ("system", "recipe"),
    [
        ("adamae", adamae_k400),
        ("videomae", videomae_k400),
        ("mae_st", mae_st_k400),
        ("mae", mae_imagenet),
    ],
)
def test_clips_are_cut_as_in_the_recipe(system: str, recipe: Any) -> None:
    found, expected = (
        infer(arrays(published(system, "B")), ImportOptions()).config,
        recipe.get_config(),
    )
    for name in CLIPS:
        assert found.data[name] == expected.data[name], name


@pytest.mark.parametrize(
    ("system", "classes", "sampling", "flip"),
    [
        ("videomae", 400, "stretched", True),
        ("videomae", 174, "segments", False),
        ("mae_st", 400, "time_scaled", True),
        ("mae", 1000, "dense", True),
    ],
)
def test_a_classifiers_clips_are_those_of_fine_tuning(
    system: str, classes: int, sampling: str, flip: bool
) -> None:
    """Which dataset it was fine-tuned on, its classes tell."""
    meta = {**meta_of(MAE["B"], MAE_DECODER, **VIDEO), "num_classes": classes}
    shapes = reference_weights.classifier_shapes(meta, published(system, "B"))
    found = infer(arrays(shapes), ImportOptions())
    data = found.config.data
    assert (data.frame_sampling, data.horizontal_flip) == (sampling, flip)
    assert data.crop_area == (0.08, 1.0)
    assert ("Something-Something" in "".join(found.clip_remarks)) == (classes == 174)


def test_segments_have_no_rate() -> None:
    message = "--sampling_rate=9 says nothing of the frame_sampling 'segments'.*: leave it out"
    with pytest.raises(UserError, match=message):
        infer(
            arrays(published("adamae", "B")),
            ImportOptions(sampling_rate=9, frame_sampling="segments"),
        )
    # Nor where the number of classes tells that frames are taken so.
    meta = {**meta_of(MAE["B"], MAE_DECODER, **VIDEO), "num_classes": 174}
    classifier = arrays(reference_weights.classifier_shapes(meta, published("videomae", "B")))
    with pytest.raises(UserError, match=message):
        infer(classifier, ImportOptions(sampling_rate=9))
    data = infer(classifier, ImportOptions(sampling_rate=9, frame_sampling="dense")).config.data
    assert (data.sampling_rate, data.frame_sampling) == (9, "dense")


@example(11, 11, 1.37)  # in floating point, 11 * (15 / 11) is less than 15
@example(16, 12, 2.1)  # 33 / 16 of the decoder's 12 are 24, and 25 are wanted
@examples(st.integers(1, 2000), st.integers(1, 2000), st.floats(0.5, 8.0, allow_subnormal=False))
def test_one_ratio_gives_the_hidden_widths_of_both_stacks(
    encoder: int, decoder: int, ratio: float
) -> None:
    """Each was rounded down, and read back in floating point."""
    widths = {"blocks.": encoder, "decoder_blocks.": decoder}
    hidden = {name: max(1, int(width * ratio)) for name, width in widths.items()}
    assume(all(int(width * ratio) for width in widths.values()))
    shapes: Shapes = {f"{n}0.mlp.fc1.weight": (hidden[n], width) for n, width in widths.items()}
    found = WeightReader(arrays(shapes), ImportOptions()).mlp_ratio(*widths)
    assert {name: int(width * found) for name, width in widths.items()} == hidden


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("patch_embed.proj.weight", (768, 3, 16), "should have 4 axes"),
        ("pos_embed", (1, 200, 768), "has 199 places, which are no square: give --image_size"),
        ("blocks.0.norm1.weight", (770,), "attention heads: give --num_heads"),
    ],
)
def test_strange_shapes_are_named(name: str, shape: tuple[int, ...], message: str) -> None:
    shapes = {**published("mae", "B"), name: shape}
    with pytest.raises(UserError, match=message):
        infer(arrays(shapes), ImportOptions())


def test_automae_reads_as_many_maps_as_its_vit_has_heads() -> None:
    shapes = published("mae", "B")
    vit = {n: s for n, s in shapes.items() if not n.startswith(("decoder_", "mask_token"))}
    shapes |= reference_weights.generator_shapes(heads=12)
    shapes |= {f"pretrained_vit.{name}": shape for name, shape in vit.items()}
    found = infer(arrays(shapes), ImportOptions())
    options = found.config.masking.options
    assert found.system == "automae"
    assert (options.vit_width, options.vit_depth, options.vit_num_heads) == (768, 12, 12)
    assert "num_heads 12: as many as attention maps are read" in found.remarks
    generator = reference_weights.generator_shapes(heads=7)
    with pytest.raises(UserError, match="7 attention heads do not divide the width 768"):
        infer(arrays(shapes | generator), ImportOptions())


def test_what_says_nothing_is_refused() -> None:
    encoder = arrays(reference_weights.encoder_only(published("mae", "B")))
    with pytest.raises(UserError, match="--mask_ratio=1 says nothing of this encoder alone .mae."):
        infer(encoder, ImportOptions(mask_ratio=1))
