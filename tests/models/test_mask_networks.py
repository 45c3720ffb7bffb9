"""AutoMAE's small networks: spectral norm as PyTorch has it, shapes, and their start."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax.errors import UserError
from adamae_jax.masking import adversarial
from adamae_jax.models.mask_networks import (
    SMALLEST_GRID,
    Discriminator,
    MaskGenerator,
    SpectralConv,
)
from tests import helpers
from tests.models.test_initializers import uniform_within

CONV = SpectralConv(features=5, size=3, stride=2, padding=1)


def image(channels: int = 2) -> jax.Array:
    """A random one."""
    values = np.random.default_rng(0).normal(size=(2, 6, 7, channels))
    return jnp.asarray(values, jnp.float32)


@functools.cache
def variables() -> Any:
    """Of `CONV`, as it starts."""
    return jax.jit(CONV.init)(jax.random.key(0), image())


def as_matrix(kernel: Any) -> np.ndarray:
    """``[outputs, inputs * height * width]``, as PyTorch flattens it."""
    kernel = np.asarray(kernel, np.float64)
    return kernel.transpose(3, 2, 0, 1).reshape(kernel.shape[-1], -1)


def vectors_by_hand(matrix: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One power iteration in PyTorch's order: first v from u, then u from v."""
    v = matrix.T @ u
    v /= np.linalg.norm(v)
    u = matrix @ v
    return u / np.linalg.norm(u), v


def flat(v: Any) -> np.ndarray:
    """``[h, w, i]`` as PyTorch's ``weight_v``."""
    return np.asarray(v, np.float64).transpose(2, 0, 1).ravel()


@functools.partial(jax.jit, static_argnames="update")
def call(given: Any, update: bool) -> Any:
    """The answer and the new state."""
    return CONV.apply(given, image(), update=update, mutable=["state"])


def with_vectors(u: np.ndarray, v: np.ndarray) -> Any:
    """`variables` with other singular vectors, ``v`` flat."""
    shaped = v.reshape(2, 3, 3).transpose(1, 2, 0)
    state = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), {"u": u, "v": shaped})
    return {**variables(), "state": {"singular_vectors": state}}


def kernel_s_effect(answer: Any, kernel: Any) -> float:
    """By how much the kernel was divided, from the answer."""
    raw = jax.lax.conv_general_dilated(
        image(), kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    ratio = np.asarray(raw) / np.asarray(answer)
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)
    return float(ratio.mean())


def test_the_start_has_almost_converged() -> None:
    given = variables()
    matrix = as_matrix(given["params"]["kernel"])
    vectors = given["state"]["singular_vectors"]
    sigma = np.asarray(vectors["u"], np.float64) @ matrix @ flat(vectors["v"])
    assert sigma == pytest.approx(np.linalg.svd(matrix)[1][0], rel=0.05)
    for vector in vectors.values():
        assert np.linalg.norm(vector) == pytest.approx(1.0, rel=1e-5)


def test_an_update_is_one_power_iteration() -> None:
    rng = np.random.default_rng(1)
    u, v = rng.normal(size=5), rng.normal(size=18)
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    given = with_vectors(u, v)
    matrix = as_matrix(given["params"]["kernel"])
    answer, new = call(given, update=True)
    u, v = vectors_by_hand(matrix, u)
    np.testing.assert_allclose(new["state"]["singular_vectors"]["u"], u, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(flat(new["state"]["singular_vectors"]["v"]), v, rtol=1e-4, atol=1e-6)
    # The norm in the very same call is that of the new vectors.
    assert kernel_s_effect(answer, given["params"]["kernel"]) == pytest.approx(
        u @ matrix @ v, rel=1e-4
    )


def test_without_an_update_nothing_is_changed() -> None:
    rng = np.random.default_rng(1)
    u, v = rng.normal(size=5), rng.normal(size=18)
    given = with_vectors(u, v)
    answer, new = call(given, update=False)
    jax.tree.map(np.testing.assert_array_equal, new["state"], given["state"])
    expected = u @ as_matrix(given["params"]["kernel"]) @ v
    assert kernel_s_effect(answer, given["params"]["kernel"]) == pytest.approx(expected, rel=1e-4)


def test_converged_the_largest_singular_value_is_one() -> None:
    given = variables()
    for _ in range(60):
        answer, state = call(given, update=True)
        given = {**given, **state}
    kernel = given["params"]["kernel"]
    divided = as_matrix(kernel) / kernel_s_effect(answer, kernel)
    assert np.linalg.svd(divided)[1][0] == pytest.approx(1.0, rel=1e-4)


def test_the_gradient_goes_through_the_norm_with_its_vectors_held() -> None:
    rng = np.random.default_rng(2)
    u, v, towards = rng.normal(size=5), rng.normal(size=18), rng.normal(size=(2, 3, 4, 5))
    given = with_vectors(u, v)
    kernel = np.asarray(given["params"]["kernel"], np.float64)

    @functools.partial(jax.jit, static_argnames="update")
    def grad(kernel: jax.Array, update: bool = False) -> jax.Array:
        def loss(kernel: jax.Array) -> jax.Array:
            own = {**given, "params": {"kernel": kernel}}
            answer, _ = CONV.apply(own, image(), update=update, mutable=["state"])
            return (answer * towards).sum()

        return jax.grad(loss)(kernel)

    @jax.jit
    def raw(kernel: jax.Array) -> jax.Array:
        answer = jax.lax.conv_general_dilated(
            image(), kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return (answer * towards).sum()

    def by_differences(u: np.ndarray, v: np.ndarray, step: float = 1e-2) -> np.ndarray:
        found = np.zeros_like(kernel)
        for place in np.ndindex(*kernel.shape):
            values = []
            for sign in (1, -1):
                moved = kernel.copy()
                moved[place] += sign * step
                values.append(float(raw(jnp.asarray(moved))) / (u @ as_matrix(moved) @ v))
            found[place] = (values[0] - values[1]) / (2 * step)
        return found

    for update in (False, True):
        vectors = vectors_by_hand(as_matrix(kernel), u) if update else (u, v)
        expected = by_differences(*vectors)
        found = np.asarray(grad(jnp.asarray(kernel), update=update))
        np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-3 * np.abs(expected).max())


def test_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.utils.spectral_norm(torch.nn.Conv2d(2, 5, 3, 2, 1, bias=False))
    u, v = layer.weight_u.numpy().copy(), layer.weight_v.numpy().copy()
    weight = layer.weight_orig.detach().numpy()
    given = with_vectors(u, v) | {"params": {"kernel": jnp.asarray(weight.transpose(2, 3, 1, 0))}}
    pixels = torch.tensor(np.asarray(image())).permute(0, 3, 1, 2)
    for update in (True, False):
        layer.train(update)
        theirs = layer(pixels)
        layer.zero_grad()
        theirs.square().sum().backward()

        def loss(params: Any, given: Any = given, update: bool = update) -> Any:
            own = {**given, "params": params}
            answer, state = CONV.apply(own, image(), update=update, mutable=["state"])
            return jnp.square(answer).sum(), (answer, state)

        (_, (answer, state)), grads = jax.value_and_grad(loss, has_aux=True)(given["params"])
        given |= state
        expected = theirs.detach().permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
        grad = np.asarray(grads["kernel"]).transpose(3, 2, 0, 1)
        np.testing.assert_allclose(grad, layer.weight_orig.grad.numpy(), rtol=1e-3, atol=1e-3)
        vectors = state["state"]["singular_vectors"]
        np.testing.assert_allclose(vectors["u"], layer.weight_u.numpy(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(flat(vectors["v"]), layer.weight_v.numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "map_shape"),
    [
        (12, 12, (1, 1)),
        (13, 13, (1, 1)),
        (14, 14, (1, 1)),
        (16, 14, (2, 1)),
        (16, 16, (2, 2)),
        (28, 28, (5, 5)),
    ],
)
def test_shapes(height: int, width: int, map_shape: tuple[int, int]) -> None:
    """Two halvings, rounded down, and a window of three."""
    mask = jnp.zeros((2, height, width))
    shapes, given = jax.eval_shape(Discriminator().init_with_output, jax.random.key(0), mask)
    assert shapes.shape == (2, *map_shape)
    kernels = {name: leaf.shape for name, leaf in helpers.named(given["params"]).items()}
    assert kernels == {
        "conv1/kernel": (4, 4, 1, 16),
        "conv2/kernel": (4, 4, 16, 32),
        "conv3/kernel": (3, 3, 32, 1),
    }
    maps = jnp.zeros((2, height, width, 12))
    logs, given = jax.eval_shape(MaskGenerator().init_with_output, jax.random.key(0), maps)
    assert logs.shape == (2, height * width)
    kernels = {name: leaf.shape for name, leaf in helpers.named(given["params"]).items()}
    assert kernels["conv1/kernel"] == (3, 3, 12, 6)
    assert kernels["conv2/kernel"] == (3, 3, 6, 1)


def test_a_smaller_grid_has_nothing_to_judge_and_is_named_by_the_strategy() -> None:
    assert SMALLEST_GRID == 12
    for side in (4, 11):
        with pytest.raises(UserError, match=f"at least 12 x 12 patches, not {side} x {side}"):
            adversarial.Strategy(mask_ratio=0.75).check((1, side, side), 8)
    mask = jnp.zeros((1, 11, 11))
    answer, _ = jax.eval_shape(Discriminator().init_with_output, jax.random.key(0), mask)
    assert answer.size == 0


def test_the_generator_gives_a_distribution_that_depends_on_neighbours_alone() -> None:
    maps = jnp.asarray(np.random.default_rng(0).random((1, 12, 13, 4)), jnp.float32)
    shapes = jax.eval_shape(MaskGenerator().init, jax.random.key(0), maps)
    generator = jax.jit(MaskGenerator().apply)
    given = helpers.filled(shapes)
    logs = np.asarray(generator(given, maps))
    assert np.exp(logs).sum() == pytest.approx(1.0, rel=1e-5)
    other = np.asarray(generator(given, maps.at[0, 4, 6].add(1.0)))
    moved = np.abs((other - logs) - (other - logs)[0, 0]).reshape(12, 13) > 1e-6
    rows, columns = np.nonzero(moved)
    # Two windows of three on top of each other.
    assert (rows.min(), rows.max()) == (2, 6)
    assert (columns.min(), columns.max()) == (4, 8)


def test_convolutions_start_as_pytorch_s() -> None:
    given = jax.jit(MaskGenerator(hidden=40).init)(jax.random.key(0), jnp.zeros((1, 12, 12, 12)))
    params = given["params"]
    uniform_within(params["conv1"]["kernel"], (9 * 12) ** -0.5)
    uniform_within(params["conv1"]["bias"], (9 * 12) ** -0.5)
    uniform_within(params["conv2"]["kernel"], (9 * 40) ** -0.5)
    judge = jax.jit(Discriminator().init)(jax.random.key(0), jnp.zeros((1, 12, 12)))["params"]
    uniform_within(judge["conv1"]["kernel"], 16**-0.5)
    uniform_within(judge["conv2"]["kernel"], 256**-0.5)
    uniform_within(judge["conv3"]["kernel"], 288**-0.5)
