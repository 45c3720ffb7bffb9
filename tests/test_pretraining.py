"""Losses and targets against plain NumPy, and which loss reaches which parameter."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax import masking, pretraining
from adamae_jax.masking import TokenMask, adaptive
from adamae_jax.models.tubelets import ClipGeometry
from adamae_jax.pretraining import ForwardOutput, Objective, Pretraining
from tests import helpers
from tests.models.test_tubelets import tubelets_by_hand

VIDEO = helpers.clips(3)
VIDEO_ARRAY = jnp.asarray(VIDEO)
KEYS = helpers.example_keys(3)


def forward(task: Pretraining, variables: Any, train: bool = True) -> ForwardOutput:
    """One pass, compiled."""
    return jax.jit(lambda variables: task.forward(variables, VIDEO_ARRAY, KEYS, train))(variables)


def targets_by_hand(masked: np.ndarray, normalize: str, pixels: str) -> np.ndarray:
    """METHODS: pixels in [0, 1], per tubelet and channel minus mean, over unbiased std + 1e-6."""
    video = VIDEO / 255.0
    if pixels == "normalized":
        video = (video - Objective().pixel_mean) / Objective().pixel_std
    tubelets = tubelets_by_hand(video, helpers.GEOMETRY)
    chosen = np.take_along_axis(tubelets, masked[:, :, None], axis=1)
    if normalize == "none":
        return chosen
    if normalize == "tubelet":
        mean, variance = chosen.mean(2, keepdims=True), chosen.var(2, ddof=1, keepdims=True)
        return (chosen - mean) / np.sqrt(variance + 1e-6)
    values = chosen.reshape(*chosen.shape[:2], -1, 3)
    mean, std = values.mean(2, keepdims=True), values.std(2, ddof=1, keepdims=True)
    return ((values - mean) / (std + 1e-6)).reshape(chosen.shape)


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    """Random variables of the tiny AdaMAE."""
    return helpers.variables(helpers.pretraining())


@pytest.mark.parametrize("pixels", ["unit", "normalized"])
@pytest.mark.parametrize("normalize", ["channel", "tubelet", "none"])
@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_losses_agree_with_numpy(
    variables: dict[str, Any], loss: Any, normalize: Any, pixels: Any
) -> None:
    objective = Objective(loss, normalize, pixels, sampling_loss_weight=0.5)
    outcome = forward(helpers.pretraining(objective=objective), variables)
    masked = np.asarray(outcome.mask.masked)
    targets = targets_by_hand(masked, normalize, pixels)
    np.testing.assert_allclose(outcome.targets, targets, rtol=1e-4, atol=1e-4)
    difference = np.asarray(outcome.predictions, np.float64) - targets
    errors = (np.abs(difference) if loss == "l1" else difference**2).mean(-1)
    np.testing.assert_allclose(outcome.token_error, errors, rtol=1e-4)
    np.testing.assert_allclose(outcome.terms["loss_reconstruction"], errors.mean(-1), rtol=1e-4)
    log_probs = np.take_along_axis(np.asarray(outcome.mask.log_probs), masked, axis=1)
    sampling = -(log_probs * errors).mean(-1)
    assert (sampling > 0).all()
    np.testing.assert_allclose(outcome.terms["loss_sampling"], sampling, rtol=1e-4)
    np.testing.assert_allclose(outcome.loss, errors.mean(-1) + 0.5 * sampling, rtol=1e-4)


def test_the_released_weights_are_the_defaults() -> None:
    objective = Objective()
    assert (objective.loss, objective.normalize_targets) == ("mse", "channel")
    assert objective.sampling_loss_weight == 1e-4
    assert objective.pixel_mean == (0.485, 0.456, 0.406)
    assert objective.pixel_std == (0.229, 0.224, 0.225)


def test_pixels_are_normalised_per_channel() -> None:
    found = pretraining.normalize_pixels(VIDEO_ARRAY, Objective())
    expected = (VIDEO / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_tubelet_of_one_colour_has_a_finite_target() -> None:
    video = jnp.full_like(VIDEO_ARRAY, 200)
    queries = jnp.broadcast_to(jnp.arange(24), (3, 24))
    targets = pretraining.targets_at(video, queries, helpers.autoencoder(), Objective())
    assert np.isfinite(targets).all()
    # Rounding of the mean, over 1e-6.
    assert np.abs(targets).max() < 1.0


def test_targets_of_fewer_frames_are_those_of_mae_st() -> None:
    """Every second frame or so of the clip, as tubelets of half the depth, all values together."""
    geometry = ClipGeometry(16, (8, 12), 2, 4)
    model = dataclasses.replace(helpers.autoencoder(), geometry=geometry, predicted_frames=8)
    objective = Objective("mse", "tubelet", "normalized", 0.0, (0.45,) * 3, (0.225,) * 3)
    video = helpers.clips(2, geometry=geometry)
    queries = np.asarray([[5, 0, 47], [7, 8, 11]])
    found = pretraining.targets_at(jnp.asarray(video), jnp.asarray(queries), model, objective)
    assert found.shape == (2, 3, 48)
    frames = (0, 2, 4, 6, 8, 10, 12, 15)
    for clip in range(2):
        for row, token in enumerate(queries[clip]):
            time, place = divmod(int(token), 6)
            top, left = 4 * (place // 3), 4 * (place % 3)
            patch = video[clip, frames[time], top : top + 4, left : left + 4] / 255.0
            values = ((patch - 0.45) / 0.225).ravel()  # (p, p, C)
            expected = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
            np.testing.assert_allclose(found[clip, row], expected, rtol=1e-3, atol=1e-4)


def test_the_sampling_loss_takes_the_error_as_given() -> None:
    log_probs = jnp.log(jnp.asarray([[0.1, 0.2, 0.3, 0.4]]))
    queries, error = jnp.asarray([[1, 3]]), jnp.asarray([[2.0, 5.0]])
    found = pretraining.sampling_loss(log_probs, queries, error)
    assert found[0] == pytest.approx(-(np.log(0.2) * 2 + np.log(0.4) * 5) / 2)
    to_probs, to_error = jax.grad(
        lambda *a: pretraining.sampling_loss(a[0], queries, a[1]).sum(), argnums=(0, 1)
    )(log_probs, error)
    assert to_probs.tolist() == [[0.0, -1.0, 0.0, -2.5]]
    assert to_error.tolist() == [[0.0, 0.0]]


Gradients = dict[str, np.ndarray]


def gradients(
    task: Pretraining, variables: Any, term: Callable[[ForwardOutput], jax.Array]
) -> Gradients:
    """The gradient of one term with respect to every parameter, by path."""

    def loss(params: Any) -> jax.Array:
        outcome = task.forward({**variables, "params": params}, VIDEO_ARRAY, KEYS, True)
        return term(outcome).mean()

    grads = helpers.named(jax.jit(jax.grad(loss))(variables["params"]))
    return {name: np.asarray(value) for name, value in grads.items()}


@pytest.fixture(scope="module")
def of_sampling(variables: dict[str, Any]) -> Gradients:
    """The gradients of the sampling loss alone."""
    return gradients(helpers.pretraining(), variables, lambda o: o.terms["loss_sampling"])


@pytest.fixture(scope="module")
def of_reconstruction(variables: dict[str, Any]) -> Gradients:
    """The gradients of the reconstruction loss alone."""
    return gradients(helpers.pretraining(), variables, lambda o: o.terms["loss_reconstruction"])


def test_the_sampling_loss_reaches_neither_encoder_blocks_nor_decoder(
    of_sampling: Gradients,
) -> None:
    embedding = {f"autoencoder/encoder/embedding/projection/{name}" for name in ("kernel", "bias")}
    assert embedding < set(of_sampling)
    for name, value in of_sampling.items():
        if name in embedding:
            assert np.abs(value).max() > 1e-5, name
        elif name.startswith("autoencoder/"):
            assert not value.any(), name
        elif name == "masking/head/bias":
            # Added to every logit alike: the softmax does not see it.
            assert np.abs(value).max() < 1e-5, name
        else:
            assert np.abs(value).max() > 1e-5, name


def test_the_reconstruction_loss_does_not_reach_the_sampler(of_reconstruction: Gradients) -> None:
    assert sum(name.startswith("masking/") for name in of_reconstruction) == 14
    for name, value in of_reconstruction.items():
        if name.startswith("masking/"):
            assert not value.any(), name
        else:
            # Every layer of every stack learns.
            layers = value if "blocks" in name else value[None]
            assert (np.abs(layers).reshape(len(layers), -1).max(1) > 1e-7).all(), name


def test_the_total_is_the_weighted_sum_of_both(
    variables: dict[str, Any], of_sampling: Gradients, of_reconstruction: Gradients
) -> None:
    task = helpers.pretraining(objective=Objective(sampling_loss_weight=0.3))
    for name, value in gradients(task, variables, lambda o: o.loss).items():
        expected = of_reconstruction[name] + 0.3 * of_sampling[name]
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-6, err_msg=name)


def test_a_strategy_without_a_distribution_has_no_sampling_loss() -> None:
    task = helpers.pretraining(masking.create("random", 0.75, {}))
    variables = helpers.variables(task)
    assert variables["params"]["masking"] == {}
    outcome = forward(task, variables)
    assert set(outcome.terms) == {"loss_reconstruction"}
    np.testing.assert_array_equal(outcome.loss, outcome.terms["loss_reconstruction"])


def test_auxiliary_losses_are_added_and_named() -> None:
    task = helpers.pretraining()
    mask = TokenMask(jnp.asarray([[0]]), jnp.asarray([[1, 2]]), aux={"fooling": jnp.asarray([3.0])})
    outcome = task.judge(jnp.ones((1, 2, 96)), jnp.zeros((1, 2, 96)), mask)
    assert outcome.terms["loss_fooling"].tolist() == [3.0]
    assert outcome.loss.tolist() == [4.0]


def test_only_the_tokens_of_decode_are_reconstructed(variables: dict[str, Any]) -> None:
    @dataclasses.dataclass(frozen=True)
    class Partial(adaptive.Strategy):
        def __call__(self, *arguments: Any) -> TokenMask:
            mask = super().__call__(*arguments)
            return mask.replace(decode=mask.masked[:, ::3])

    outcome = forward(helpers.pretraining(Partial(mask_ratio=0.75)), variables)
    assert outcome.predictions.shape == (3, 6, 96)
    masked = np.asarray(outcome.mask.masked)[:, ::3]
    np.testing.assert_allclose(
        outcome.targets, targets_by_hand(masked, "channel", "unit"), rtol=1e-4, atol=1e-4
    )
    log_probs = np.take_along_axis(np.asarray(outcome.mask.log_probs), masked, axis=1)
    expected = -(log_probs * np.asarray(outcome.token_error)).mean(-1)
    np.testing.assert_allclose(outcome.terms["loss_sampling"], expected, rtol=1e-4)


def test_bfloat16_matmuls_leave_parameters_and_losses_in_float32(variables: dict[str, Any]) -> None:
    task = helpers.pretraining(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes["params"])} == {jnp.dtype("float32")}
    outcome = forward(task, variables)
    for array in (
        outcome.loss,
        outcome.predictions,
        outcome.token_error,
        jnp.asarray(outcome.mask.log_probs),
        *outcome.terms.values(),
    ):
        assert array.dtype == jnp.float32
    exact = forward(helpers.pretraining(), variables)
    np.testing.assert_allclose(outcome.loss, exact.loss, rtol=5e-2)
    assert (np.asarray(outcome.loss) != np.asarray(exact.loss)).all()


def test_training_turns_dropout_on_and_nothing_else(variables: dict[str, Any]) -> None:
    still = helpers.pretraining(adaptive.Strategy(mask_ratio=0.75, dropout=0.0))
    evaluated = forward(helpers.pretraining(), variables, train=False)
    np.testing.assert_allclose(evaluated.loss, forward(still, variables).loss, rtol=1e-5)
    trained = forward(helpers.pretraining(), variables)
    both = [np.asarray(outcome.mask.log_probs) for outcome in (trained, evaluated)]
    assert np.abs(both[0] - both[1]).max() > 1e-3


def test_initial_variables_have_their_parts() -> None:
    shapes = jax.eval_shape(helpers.pretraining().init, jax.random.key(0))
    assert set(shapes) == {"params", "state", "frozen"}
    assert set(shapes["params"]) == {"autoencoder", "masking"}
    assert (shapes["state"], shapes["frozen"]) == ({}, {})
    assert shapes["params"]["masking"]["position_table"].shape == (24, 16)
