"""Operations counted by hand, and the published cost of the full-size model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamae_jax import experiment
from adamae_jax.benchmark.flops import matmul_flops
from adamae_jax.models.pallas_attention import pallas_attention
from adamae_jax.training.partitioning import create_mesh, on_mesh
from configs import adamae_ssv2
from tests import helpers

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
PRODUCT = 2 * 3 * 5 * 7


def test_a_product_and_its_gradient() -> None:
    assert matmul_flops(jax.make_jaxpr(jnp.matmul)(A, B)) == PRODUCT
    gradient = jax.grad(lambda a, b: jnp.sin(a @ b).sum(), argnums=(0, 1))
    assert matmul_flops(jax.make_jaxpr(gradient)(A, B)) == 3 * PRODUCT


def test_batch_axes_count_once() -> None:
    batched = jax.vmap(jnp.matmul)
    stacks = jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7))
    assert matmul_flops(jax.make_jaxpr(batched)(*stacks)) == 4 * PRODUCT


def test_loops_and_branches() -> None:
    square = jnp.ones((3, 3))

    def scanned(a: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, square), None), a, length=6)[0]

    assert matmul_flops(jax.make_jaxpr(scanned)(square)) == 6 * 2 * 27
    # Backwards, each turn needs the gradient of its left factor alone.
    gradient = jax.grad(lambda a: scanned(a).sum())
    assert matmul_flops(jax.make_jaxpr(gradient)(square)) in (6 * 2 * 27, 2 * 6 * 2 * 27)

    def either(a: jax.Array) -> jax.Array:
        return jax.lax.cond(a[0, 0] > 0, lambda x: x @ square @ square, lambda x: x @ square, a)

    assert matmul_flops(jax.make_jaxpr(either)(square)) == 2 * 2 * 27


def test_a_kernel_counts_as_often_as_its_grid_has_steps() -> None:
    """Of attention, two products forward and five backward, over rows that are filled up."""
    query = jnp.ones((2, 100, 3, 8))

    def attended(*qkv: jax.Array) -> jax.Array:
        return pallas_attention(*qkv).sum()

    filled = 2 * 2 * 3 * 128 * 128 * 8
    forward = matmul_flops(jax.make_jaxpr(attended)(query, query, query))
    assert forward == 2 * filled
    backward = jax.grad(attended, argnums=(0, 1, 2))
    inner = 2 * 2 * 3 * 128 * 8  # of each row's result and its gradient
    whole = matmul_flops(jax.make_jaxpr(backward)(query, query, query))
    assert whole == 7 * filled + inner
    # Two devices, each with one of the two examples.
    split = on_mesh(backward, create_mesh({"data": 2}, jax.devices()[:2]))
    assert matmul_flops(jax.make_jaxpr(split)(query, query, query)) == whole


def test_rematerialisation_counts_what_it_repeats() -> None:
    def loss(a: jax.Array) -> jax.Array:
        return jnp.sin(jnp.sin(a @ B) @ B.T).sum()

    plain, again = jax.value_and_grad(loss), jax.value_and_grad(jax.checkpoint(loss))
    counts = [matmul_flops(jax.make_jaxpr(f)(A)) for f in (plain, again)]
    assert counts[0] == 4 * PRODUCT
    assert counts[1] == 6 * PRODUCT


def test_what_nobody_uses_does_not_count() -> None:
    def loss(a: jax.Array) -> jax.Array:
        unused = jax.jit(jnp.matmul)(a, B)
        del unused
        return (a @ B).sum()

    assert matmul_flops(jax.make_jaxpr(loss)(A)) == PRODUCT


def test_the_full_model_costs_what_is_known() -> None:
    config = adamae_ssv2.get_config()
    config.model.attention = "xla"  # blockwise computes scores a second time
    pretraining = experiment.pretraining(config)
    variables = jax.eval_shape(pretraining.init, jax.random.key(0))
    video = jax.ShapeDtypeStruct((2, *pretraining.model.geometry.clip_shape), np.uint8)
    keys = jax.eval_shape(lambda: helpers.example_keys(2))

    def loss(params: Any, video: Any, keys: Any, train: bool) -> jax.Array:
        return pretraining.forward({"params": params}, video, keys, train).loss.mean()

    args = (variables["params"], video, keys)
    forward = jax.make_jaxpr(loss, static_argnums=3)(*args, True)
    backward = jax.make_jaxpr(jax.grad(loss), static_argnums=3)(*args, True)
    assert abs(matmul_flops(forward) / 2 / 1e9 - 86) < 1
    assert abs(matmul_flops(backward) / 2 / 1e9 - 258) < 6
