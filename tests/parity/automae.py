"""AutoMAE's model, generator and discriminator, and plain MAE, beside the authors' results."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamae_jax import masking, pretraining
from adamae_jax.interop import authors
from adamae_jax.masking import adversarial, random
from adamae_jax.pretraining import Objective, Pretraining
from tests.parity.parts import (
    Arrays,
    Comparison,
    Meta,
    autoencoder_of,
    everywhere,
    gradients_of,
    load,
    mae_objective,
    named,
    random_masking,
    section,
)


def automae(file: Arrays, meta: Meta) -> tuple[Comparison, Comparison]:
    """AutoMAE's model, generator and discriminator, and plain MAE with the same weights."""
    images = file["input/image_uint8"][:, None]
    objective = mae_objective(meta, Objective().pixel_mean, Objective().pixel_std)
    model = autoencoder_of(meta, "mae")
    vit = section(file, "pretrained_vit/weights/")
    strategy = adversarial.Strategy(
        mask_ratio=meta["mask_ratio"],
        vit_width=vit["cls_token"].shape[-1],
        vit_depth=sum(name.endswith("attn.proj.bias") for name in vit),
        # The generator reads one attention map per head.
        vit_num_heads=file["model/weights/scorer_pred.main.0.weight"].shape[1],
        vit_norm_epsilon=model.encoder_spec.norm_epsilon,
        mask_factor=meta["mask_factor"],
        adversarial_weight=meta["adversarial_weight"],
        gumbel_tau=meta["gumbel_tau"],
    )
    task = Pretraining(model, strategy, objective)
    table = authors.pretraining_table(task)
    tree = load(
        table,
        {
            **section(file, "model/weights/"),
            **named("discriminator.", section(file, "discriminator/weights/")),
            **named("discriminator.", section(file, "discriminator/buffers/")),
            **named("pretrained_vit.", vit),
        },
    )
    adversary = tree["params"]["masking"]["discriminator"]
    outputs, grads = automae_model(file, task, tree, images)
    judged, adversary_grads = automae_discriminator(file, strategy, tree, adversary, outputs)
    mae_table = authors.autoencoder_table(model)
    plain = Pretraining(model, random.Strategy(meta["mask_ratio"]), objective)
    mae_outputs, mae_grads = random_masking(
        plain, mae_table, tree["params"]["autoencoder"], images, file
    )
    mae_outputs["loss"] = mae_outputs.pop("loss_reconstruction")
    ours = {**outputs, **judged, **named("mae_", mae_outputs)}
    gradients = {
        **named("model/", grads),
        **named("discriminator/", adversary_grads),
        **named("mae/", mae_grads),
    }
    theirs = {name.replace("/grads/", "/"): file[name] for name in file if "/grads/" in name}
    return (ours, section(file, "output/")), (gradients, theirs)


def automae_model(
    file: Arrays, task: Pretraining, tree: Any, images: np.ndarray
) -> tuple[dict[str, Any], Arrays]:
    """What model and generator compute, and their gradients."""
    strategy, grid = task.strategy, task.model.geometry.grid
    assert isinstance(strategy, adversarial.Strategy)
    held = tree["params"]["masking"]["discriminator"]
    trained = {
        "autoencoder": tree["params"]["autoencoder"],
        "generator": tree["params"]["masking"]["generator"],
    }
    table = authors.autoencoder_table(task.model).under(
        "autoencoder"
    ) + authors.generator_table().under("generator")
    video = jnp.asarray(images)
    pixels = pretraining.normalize_pixels(video, task.objective)

    def loss(trained: Any) -> tuple[jax.Array, dict[str, Any]]:
        variables = {
            "params": {"generator": trained["generator"], "discriminator": held},
            "state": tree["state"],
            "frozen": tree["frozen"],
        }
        params = trained["autoencoder"]
        inputs, placed = task.mask_inputs(params, pixels)
        soft = strategy.mask_probabilities(variables, inputs, jnp.asarray(file["input/gumbel"]))
        noise, visible = strategy.select(soft, jnp.asarray(file["input/noise"]), grid)
        generator = adversarial.per_clip(
            strategy.scores(variables, soft, grid, False)[0], 1.0, grid
        )
        indices = masking.base.mask_from_visible(visible > 0.5, strategy.num_visible(grid))
        mask = masking.TokenMask(
            **indices,
            token_scale=noise,
            aux={"generator": strategy.adversarial_weight * generator},
        )
        outcome = task.reconstruct(params, video, placed, mask)
        total = outcome.loss.mean()
        return total, {
            "attention": strategy.attention(tree["frozen"], inputs),
            "mask_probability": soft,
            "mask": 1.0 - visible,
            "pred": everywhere(task, params, placed, mask),
            "loss_reconstruction": outcome.terms["loss_reconstruction"].mean(),
            "loss_generator": generator.mean(),
            "loss_total": total,
        }

    return gradients_of(loss, trained, table)


def automae_discriminator(
    file: Arrays, strategy: adversarial.Strategy, tree: Any, adversary: Any, outputs: Arrays
) -> tuple[dict[str, Any], Arrays]:
    """The discriminator's two losses and the gradients of their sum."""
    fake = jnp.asarray(outputs["mask_probability"])
    real = jnp.asarray(file["input/real_mask"])
    grid = (1, real.shape[-2], real.shape[-1])

    def loss(adversary: Any) -> tuple[jax.Array, dict[str, Any]]:
        variables = {"params": {"discriminator": adversary}, "state": tree["state"]}
        flat = real.reshape(fake.shape)
        total, _ = strategy.discriminate(variables, flat, fake, grid, False)
        answers = {
            "real": (strategy.scores(variables, flat, grid, False)[0], 1.0),
            "fake": (strategy.scores(variables, fake, grid, False)[0], 0.0),
        }
        return total.mean(), {
            f"loss_discriminator_{name}": adversarial.per_clip(scores, wanted, grid).mean()
            for name, (scores, wanted) in answers.items()
        }

    return gradients_of(loss, adversary, authors.discriminator_tables()[0])
