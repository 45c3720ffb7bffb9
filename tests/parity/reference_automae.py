"""Whole files in the form of AutoMAE's, computed by `reference`."""

from typing import Any

import jax
import numpy as np

from tests.parity import reference, reference_weights
from tests.parity.parts import Arrays, Meta, named, section
from tests.parity.reference_files import complete, differentiate, results, shuffled


def automae(file: Arrays, meta: Meta) -> dict[str, np.ndarray]:
    """Results of model and generator, discriminator, and plain MAE."""
    pixels = reference.normalized(file["input/image_uint8"][:, None], *reference.IMAGENET)
    maps = attention_maps(file, meta, pixels)
    found = model(file, meta, pixels, maps)
    fake = found["output/mask_probability"]
    found |= discriminator(file, fake.reshape(file["input/real_mask"].shape))
    return found | plain_mae(file, meta, pixels)


def attention_maps(file: Arrays, meta: Meta, pixels: np.ndarray) -> Any:
    """Of the frozen ViT, ``[B, heads, h, w]``."""
    heads = file["model/weights/scorer_pred.main.0.weight"].shape[1]
    vit = section(file, "pretrained_vit/weights/")
    maps = jax.jit(reference.class_attention, static_argnums=(2, 3))(
        vit, pixels, heads, meta["norm_eps"]
    )
    return maps.reshape(len(maps), heads, *reference_weights.grid_of(meta)[1:])


def model(file: Arrays, meta: Meta, pixels: np.ndarray, maps: Any) -> dict[str, np.ndarray]:
    """Model and generator, which the discriminator judges."""
    weights = section(file, "model/weights/")
    judge = section(file, "discriminator/weights/"), section(file, "discriminator/buffers/")

    def soft_mask(w: Any) -> Any:
        return reference.mask_probability(w, maps, file["input/gumbel"], meta["gumbel_tau"])

    count = shuffled(file["input/noise"], meta)[1]
    picked = np.zeros_like(file["input/noise"])
    favourites = np.argsort(-np.asarray(soft_mask(weights)), axis=1)[:, :count]
    np.put_along_axis(picked, favourites, 1.0, axis=1)
    noise = file["input/noise"] + np.float32(meta["mask_factor"]) * picked
    order, count, mask = shuffled(noise, meta)

    def loss(w: Any) -> tuple[Any, dict[str, Any]]:
        soft = soft_mask(w)
        scale = noise + meta["mask_factor"] * (soft - jax.lax.stop_gradient(soft))
        pred = reference.mae_predictions(w, pixels, order, count, meta, scale)
        value = reference.mae_loss(pred, pixels, mask, meta)
        fooling = (
            (reference.verdict(*judge, soft.reshape(file["input/real_mask"].shape)) - 1) ** 2
        ).mean()
        total = value + meta["adversarial_weight"] * fooling
        flat = maps.reshape(*maps.shape[:2], -1)
        return total, {
            **{"attention": flat, "mask_probability": soft, "mask": mask, "pred": pred},
            **{"loss_reconstruction": value, "loss_generator": fooling, "loss_total": total},
        }

    return results(*differentiate(loss, weights, fixed="pos_embed"), "model/")


def discriminator(file: Arrays, fake: np.ndarray) -> dict[str, np.ndarray]:
    """The discriminator, which tells ``real_mask`` from ``fake``."""
    vectors = section(file, "discriminator/buffers/")

    def loss(w: Any) -> tuple[Any, dict[str, Any]]:
        real_loss = ((reference.verdict(w, vectors, file["input/real_mask"]) - 1) ** 2).mean()
        fake_loss = (reference.verdict(w, vectors, fake) ** 2).mean()
        outputs = {"loss_discriminator_real": real_loss, "loss_discriminator_fake": fake_loss}
        return real_loss + fake_loss, outputs

    return results(*differentiate(loss, section(file, "discriminator/weights/")), "discriminator/")


def plain_mae(file: Arrays, meta: Meta, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """MAE with AutoMAE's weights, image and noise."""
    weights = {
        name: array
        for name, array in section(file, "model/weights/").items()
        if not name.startswith("scorer_pred")
    }
    order, count, mask = shuffled(file["input/noise"], meta)

    def loss(w: Any) -> tuple[Any, dict[str, Any]]:
        pred = reference.mae_predictions(w, pixels, order, count, meta)
        value = reference.mae_loss(pred, pixels, mask, meta)
        return value, {"mae_loss": value, "mae_pred": pred, "mae_mask": mask}

    return results(*differentiate(loss, weights, fixed="pos_embed"), "mae/")


def automae_file(meta: Meta, vit: Meta, seed: int = 4) -> dict[str, np.ndarray]:
    """A file of AutoMAE; ``vit`` has the sizes of the frozen ViT, as those of an encoder."""
    rng = np.random.default_rng(seed)
    _, height, width = reference_weights.grid_of(meta)
    side, patches = meta["patch_size"], height * width
    shapes = reference_weights.mae_shapes(meta) | reference_weights.generator_shapes(vit["heads"])
    image_mae = reference_weights.mae_shapes({**meta, "encoder": vit})
    of_vit = reference_weights.encoder_only(image_mae) | reference_weights.pair("norm", vit["dim"])
    judge = reference_weights.fill(reference_weights.discriminator_shapes(), seed)
    file = {
        "input/image_uint8": rng.integers(0, 256, (2, height * side, width * side, 3), np.uint8),
        "input/gumbel": rng.gumbel(size=(2, patches)).astype(np.float32),
        "input/noise": rng.random((2, patches), np.float32),
        "input/real_mask": rng.dirichlet([1.0] * patches, 2).astype(np.float32),
        **named("model/weights/", with_fixed_tables(shapes, meta, seed)),
        **named("pretrained_vit/weights/", with_fixed_tables(of_vit, meta, seed + 1)),
        **named("discriminator/weights/", judge),
        **named("discriminator/buffers/", reference_weights.singular_vectors(judge)),
    }
    file["input/real_mask"] = file["input/real_mask"].reshape(2, 1, height, width)
    return complete(file, meta, automae)


def with_fixed_tables(
    shapes: reference_weights.Shapes, meta: Meta, seed: int
) -> dict[str, np.ndarray]:
    """Random weights, but MAE's position tables, which are not trained."""
    side = reference_weights.grid_of(meta)[1:]
    weights = reference_weights.fill(shapes, seed)
    for name in weights:
        if name.endswith("pos_embed"):
            weights[name] = reference.table_2d(*side, shapes[name][-1])[None]
    return weights
