"""Weights in and out of PyTorch's files, and what transformers computes with our exports."""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamae_jax import pretrained, pretraining
from adamae_jax.errors import UserError
from adamae_jax.interop import exports, huggingface
from adamae_jax.interop.huggingface import CLASSES, DEFAULT_EPSILON
from adamae_jax.interop.huggingface_weights import KEEPING_BIASES
from adamae_jax.interop.sources import DESCRIPTION, DESCRIPTION_FILE
from adamae_jax.masking.base import TokenMask
from adamae_jax.pretrained import Finetuned, Loaded, Pretrained
from tests import helpers
from tests.interop.convert_cases import (
    HUGGING_FACE,
    LABELS,
    MODELS,
    assert_same_arrays,
    assert_same_model,
    bring,
    export,
    given,
    loaded,
    written,
)
from tests.parity import reference

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")
pytestmark = pytest.mark.interop

TOLERANCE = 1e-5
CLIPS = 3


def identity(model: tuple[str, bool]) -> str:
    return model[0] + " fine-tuned" * model[1]


ALL = pytest.mark.parametrize("model", MODELS, ids=identity)
WITH_CLASS = pytest.mark.parametrize(
    "model", [m for m in HUGGING_FACE if m[0] != "adamae"], ids=identity
)


def tensors(state: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.tensor(array) for name, array in state.items()}


# The .pth column.


@ALL
def test_ours_to_a_checkpoint_to_ours(tmp_path: Path, model: tuple[str, bool]) -> None:
    ours = written(tmp_path / "ours", *model)
    file = export(ours, tmp_path / "file.pth")
    contents = torch.load(file, weights_only=True)
    separate = [name for name in contents if name not in ("model", DESCRIPTION)]
    assert separate == (["discriminator", "pretrained_vit"] if model[0] == "automae" else [])
    for name in separate:
        contents["model"] |= {f"{name}.{part}": a for part, a in contents[name].items()}
    state = exports.to_authors(loaded(*model))
    assert_same_arrays({name: a.numpy() for name, a in contents["model"].items()}, state)
    again = pretrained.load(bring(file, tmp_path / "again"))
    assert_same_model(again, loaded(*model))
    assert (again.step, again.license) == (loaded(*model).step, loaded(*model).license)
    assert again.label_names == loaded(*model).label_names


def test_their_checkpoint_to_ours(tmp_path: Path) -> None:
    """As their trainers write it, data parallel, with an average of the weights beside."""
    state = tensors(exports.to_authors(loaded("mae_st", True)))
    wrapped = {f"module.encoder.{name}": array for name, array in state.items()}
    contents = {"model": tensors({"a": np.zeros(1)}), "model_ema": wrapped}
    torch.save({**contents, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "theirs.pth")
    own = given("mae_st", True)
    ours = bring(tmp_path / "theirs.pth", tmp_path / "ours", "--key=model_ema", *own)
    assert_same_model(pretrained.load(ours), loaded("mae_st", True))


def test_automaes_checkpoint_and_its_vit(tmp_path: Path) -> None:
    """As its authors' trainer writes it: the ViT elsewhere, one convolution under two names."""
    state = exports.to_authors(loaded("automae"))
    groups: dict[str, dict[str, np.ndarray]] = {"discriminator": {}, "pretrained_vit": {}}
    model = {}
    for name, array in state.items():
        group, _, rest = name.partition(".")
        if group in groups:
            groups[group][rest] = array
        else:
            model[name] = array
    discriminator = groups["discriminator"]
    twice = {
        name.replace("conv1.", "features."): array
        for name, array in discriminator.items()
        if name.startswith("conv1.")
    }
    theirs = {"model": tensors(model), "discriminator": tensors(discriminator | twice)}
    torch.save({**theirs, "args": argparse.Namespace()}, tmp_path / "theirs.pth")
    torch.save({"model": tensors(groups["pretrained_vit"])}, tmp_path / "vit.pth")
    with pytest.raises(UserError, match="give --pretrained_vit"):
        bring(tmp_path / "theirs.pth", tmp_path / "ours", *given("automae"))
    flag = f"--pretrained_vit={tmp_path / 'vit.pth'}"
    ours = bring(tmp_path / "theirs.pth", tmp_path / "ours", flag, *given("automae"))
    assert_same_model(pretrained.load(ours), loaded("automae"))


# Directories, as transformers writes and reads them.


@WITH_CLASS
def test_what_they_read_and_write_again_is_the_same(
    tmp_path: Path, model: tuple[str, bool]
) -> None:
    """In whole files, in shards, and in pickles with the names inside their classes."""
    exports.write_hugging_face(loaded(*model), tmp_path / "ours")
    options = huggingface.read(tmp_path / "ours").options
    their, state = theirs(tmp_path / "ours", loaded(*model)), exports.to_authors(loaded(*model))
    assert their.dtype == torch.float32
    if model[1]:
        assert their.config.id2label == dict(enumerate(LABELS))
    their.save_pretrained(tmp_path / "whole")
    their.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    their.save_pretrained(tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    torch.save(their.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    for form in ("whole", "shards", "pickle"):
        found = huggingface.read(tmp_path / form)
        assert_same_arrays(found.state, state)
        assert vars(found.options) == {**vars(options), "pixels": None}
    their.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    for array in huggingface.read(tmp_path / "half").state.values():
        assert array.dtype == np.float32


@pytest.mark.filterwarnings("ignore")  # they would rather have torchvision
def test_their_processors_make_our_pixels(tmp_path: Path) -> None:
    for name, class_name in (("mae", "ViTImageProcessor"), ("adamae", "VideoMAEImageProcessor")):
        model = loaded(name)
        config = model.config.copy_and_resolve_references()
        mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
        config.objective.pixel_mean, config.objective.pixel_std = mean, std
        other = pretrained.build(model.variables, config, 0, (), "", "x")
        exports.write_hugging_face(other, tmp_path / name)
        processor = getattr(transformers, class_name).from_pretrained(
            tmp_path / name, local_files_only=True
        )
        _, height, width, _ = model.model.geometry.clip_shape
        frames = helpers.clips(1, geometry=model.model.geometry)[0]
        pixels = np.asarray(processor(list(frames), return_tensors="np")["pixel_values"])
        found = pixels.reshape(-1, 3, height, width).transpose(0, 2, 3, 1)
        np.testing.assert_allclose(found, (frames / 255 - np.array(mean)) / std, atol=1e-5)
        processor.save_pretrained(tmp_path / name)
        (tmp_path / name / DESCRIPTION_FILE).unlink()
        assert huggingface.read(tmp_path / name).options.pixels == (mean, std)


# The numbers of transformers' classes.


def distance(found: Any, expected: Any) -> float:
    """Relative, in the Euclidean norm."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def theirs(directory: Path, model: Loaded) -> Any:
    """Their class with the weights of a directory."""
    name = CLASSES[exports.class_of(model)]
    their, info = getattr(transformers, name).from_pretrained(
        directory, output_loading_info=True, local_files_only=True
    )
    # What it loads as zeros is among the missing keys.
    advice = f"transformers is {transformers.__version__}: {KEEPING_BIASES} are right"
    assert not any(info.values()), (advice, info)
    return their.eval()


def pixels_of(model: Loaded, video: np.ndarray) -> Any:
    """The model's input as theirs takes it: frames before channels, or one image."""
    objective = pretrained.experiment.objective(model.config)
    pixels = np.asarray(pretraining.normalize_pixels(jnp.asarray(video), objective))
    channels_first = torch.tensor(pixels.transpose(0, 1, 4, 2, 3).copy())
    return channels_first[:, 0] if model.model.geometry.num_frames == 1 else channels_first


def random_noise(model: Pretrained) -> np.ndarray:
    count = model.model.geometry.num_tokens
    return np.random.default_rng(5).random((CLIPS, count), np.float32)


def mask_from(model: Pretrained, noise: np.ndarray) -> TokenMask:
    """The tokens with the smallest noise are seen."""
    order = np.argsort(noise, axis=1)
    count = model.task.strategy.num_visible(model.model.geometry.grid)
    visible, masked = np.sort(order[:, :count], axis=1), np.sort(order[:, count:], axis=1)
    return TokenMask(visible=jnp.asarray(visible), masked=jnp.asarray(masked))


def our_loss(model: Pretrained, video: np.ndarray, mask: TokenMask) -> tuple[Any, Any]:
    """The mean reconstruction loss and the predictions under a mask."""

    @jax.jit
    def compute(params: Any) -> tuple[Any, Any]:
        task = model.task
        pixels = pretraining.normalize_pixels(jnp.asarray(video), task.objective)
        placed = task.mask_inputs(params, pixels)[1]
        outcome = task.reconstruct(params, jnp.asarray(video), placed, mask)
        return outcome.terms["loss_reconstruction"].mean(), outcome.predictions

    return compute(model.params)


def their_answer(their: Any, pixels: Any, noise: np.ndarray, mask: TokenMask) -> tuple[Any, Any]:
    """Their loss, and their predictions of the masked tokens."""
    masked_at = np.asarray(mask.masked, np.int64)
    with torch.no_grad():
        if pixels.ndim == 4:  # images
            output = their(pixels, noise=torch.tensor(noise))
            at = torch.tensor(masked_at)[..., None]
            return output.loss, torch.take_along_dim(output.logits, at, dim=1)
        masked = np.zeros(noise.shape, bool)
        np.put_along_axis(masked, masked_at, True, axis=1)
        output = their(pixels, bool_masked_pos=torch.tensor(masked))
        return output.loss, output.logits


def compare_pretraining(model: Pretrained, their: Any) -> None:
    """Loss, predictions and features agree.

    The predictions but for one epsilon: that of their decoder's last norm is 1e-5, whatever the
    config. Given ours, they agree too; the loss agrees either way.
    """
    video = helpers.clips(CLIPS, seed=4, geometry=model.model.geometry)
    pixels, noise = pixels_of(model, video), random_noise(model)
    mask = mask_from(model, noise)
    loss, predictions = our_loss(model, video, mask)
    assert distance(loss, their_answer(their, pixels, noise, mask)[0]) <= TOLERANCE
    if pixels.ndim == 5:
        assert their.decoder.norm.eps == DEFAULT_EPSILON
        their.decoder.norm.eps = model.config.model.decoder_norm_epsilon
    their_loss, answer = their_answer(their, pixels, noise, mask)
    assert distance(loss, their_loss) <= TOLERANCE
    assert distance(predictions, answer) <= TOLERANCE
    with torch.no_grad():
        assert distance(model.features(video), their_features(their, pixels)) <= TOLERANCE


def their_features(their: Any, pixels: Any) -> Any:
    """Their encoder's latents of all tokens, in order, without the class token."""
    if pixels.ndim == 5:
        return their.videomae(pixels).last_hidden_state
    count = their.config.image_size**2 // their.config.patch_size**2
    their.vit.embeddings.config.mask_ratio = 0.0
    order = torch.arange(count, dtype=torch.float32).repeat(len(pixels), 1)
    return their.vit(pixels, noise=order).last_hidden_state[:, 1:]


@pytest.mark.parametrize("name", [name for name, fine_tuned in HUGGING_FACE if not fine_tuned])
def test_their_pretraining_computes_what_ours_does(tmp_path: Path, name: str) -> None:
    """AdaMAE's is its reconstruction loss, under a mask that its sampler might have drawn."""
    model = loaded(name)
    assert isinstance(model, Pretrained)
    remarks = exports.write_hugging_face(model, tmp_path / "theirs")
    said = "the epsilon 1e-05 in the decoder's norm, this model 1e-06: its predictions differ"
    assert (said in "".join(remarks)) == (name != "mae")
    compare_pretraining(model, theirs(tmp_path / "theirs", model))


def with_epsilon(model: Finetuned, epsilon: float) -> Finetuned:
    config = model.config.copy_and_resolve_references()
    config.classifier.norm_epsilon = epsilon
    built = pretrained.build(model.variables, config, 0, model.label_names, "", "x")
    assert isinstance(built, Finetuned)
    return built


def classifier_distance(directory: Path, model: Finetuned) -> tuple[float, list[str]]:
    """How far their logits of our export are from ours, and what the export remarks."""
    remarks = exports.write_hugging_face(model, directory)
    their = theirs(directory, model)
    video = helpers.clips(CLIPS, seed=6, geometry=model.model.geometry)
    with torch.no_grad():
        output = their(pixels_of(model, video), output_hidden_states=True)
    assert distance(model.features(video), output.hidden_states[-1]) <= TOLERANCE
    return distance(model.logits(video), output.logits), remarks


def test_their_classifier_computes_what_ours_does(tmp_path: Path) -> None:
    """With the epsilon that is theirs; with the authors' the export says that it is another."""
    model = loaded("videomae", True)
    assert isinstance(model, Finetuned)
    far, remarks = classifier_distance(tmp_path / "theirs", with_epsilon(model, 1e-5))
    assert far <= TOLERANCE
    assert "the epsilon" not in "".join(remarks)
    far, remarks = classifier_distance(tmp_path / "authors", with_epsilon(model, 1e-6))
    # Of mean tokens whose variance is near 1, half of 9e-6: below what anyone measures.
    assert far <= 1e-4
    assert "epsilon 1e-05 in fc_norm, this model 1e-06" in "".join(remarks)
    far, _ = classifier_distance(tmp_path / "far", with_epsilon(model, 1e-1))
    assert far > 100 * TOLERANCE  # so that the comparison sees an epsilon


def test_their_classifier_of_the_first_token_computes_what_ours_does(tmp_path: Path) -> None:
    """Its last norm has the epsilon of all others."""
    model = loaded("videomae_first", True)
    assert isinstance(model, Finetuned)
    far, remarks = classifier_distance(tmp_path / "equal", model)
    assert far <= TOLERANCE
    assert "the epsilon" not in "".join(remarks)
    far, remarks = classifier_distance(tmp_path / "far", with_epsilon(model, 1e-1))
    assert far > 100 * TOLERANCE
    assert "epsilon 1e-06 in videomae.layernorm, this model 0.1" in "".join(remarks)


def fresh(name: str, **sizes: Any) -> Any:
    """Their class, as they initialise it, but for what they start at zero."""
    config_class = transformers.ViTMAEConfig if "MAE" in name[:6] else transformers.VideoMAEConfig
    shared = {
        **{"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "intermediate_size": 40, "decoder_hidden_size": 12},
        **{"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 3},
        **{"decoder_intermediate_size": 30, "norm_pix_loss": True},
    }
    torch.manual_seed(0)
    their = getattr(transformers, name)(config_class(**shared, **sizes))
    with torch.no_grad():
        for parameter in their.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        if name == "ViTMAEForPreTraining":
            # Version 5 leaves the fixed tables of a new model at zero; published models have them.
            tables = (their.vit.embeddings.position_embeddings, their.decoder.decoder_pos_embed)
            for table in tables:
                table.copy_(torch.tensor(reference.table_2d(4, 4, table.shape[-1])[None]))
    return their.eval()


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("name", ["VideoMAEForPreTraining", "ViTMAEForPreTraining"])
def test_what_they_save_computes_the_same_here(
    tmp_path: Path, name: str, norm_pix_loss: bool
) -> None:
    video = {"num_frames": 4, "tubelet_size": 2, "use_mean_pooling": False}
    sizes = video if name.startswith("VideoMAE") else {"mask_ratio": 0.75}
    their = fresh(name, **sizes)
    their.config.norm_pix_loss = norm_pix_loss
    their.save_pretrained(tmp_path / "theirs")
    model = pretrained.load_pretrained(bring(tmp_path / "theirs", tmp_path / "ours"))
    compare_pretraining(model, their)


@pytest.mark.parametrize("mean", [True, False])
def test_their_classifier_computes_the_same_here(tmp_path: Path, mean: bool) -> None:
    sizes = {"num_frames": 4, "tubelet_size": 2, "num_labels": 5, "use_mean_pooling": mean}
    their = fresh("VideoMAEForVideoClassification", **sizes)
    their.save_pretrained(tmp_path / "theirs")
    model = pretrained.load(bring(tmp_path / "theirs", tmp_path / "ours"))
    assert isinstance(model, Finetuned)
    assert model.model.pooling == ("mean" if mean else "first")
    video = helpers.clips(CLIPS, seed=6, geometry=model.model.geometry)
    with torch.no_grad():
        assert distance(model.logits(video), their(pixels_of(model, video)).logits) <= TOLERANCE
