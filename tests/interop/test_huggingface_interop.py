"""Hugging Face's directories as transformers itself writes and reads them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamae_jax.interop import huggingface
from adamae_jax.interop.huggingface import CLASSES, Kind
from adamae_jax.interop.huggingface_facts import FC_NORM_EPSILON
from tests.interop.huggingface_models import (
    FACTS,
    FIRST_TOKEN,
    assert_same,
    first_token_state,
    state,
)

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")
pytestmark = pytest.mark.interop

ALL = pytest.mark.parametrize("kind", list(CLASSES))


def load(directory: Path, kind: Kind) -> Any:
    """Their class, loaded without a tensor missing, left over or made up."""
    model, info = getattr(transformers, CLASSES[kind]).from_pretrained(
        directory, output_loading_info=True, local_files_only=True
    )
    assert not any(info.values()), info
    return model


def fresh(kind: Kind) -> Any:
    """Their class with random weights, of the size of `FACTS`, with no plain norm or bias."""
    facts = FACTS[kind]
    sizes = {
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "decoder_hidden_size": 8,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 14,
        "layer_norm_eps": 1e-6,
        "norm_pix_loss": facts.norm_pix_loss,
    }
    if kind == "mae_pretraining":
        config = transformers.ViTMAEConfig(**sizes, mask_ratio=0.7)
    else:
        pooling = kind == "videomae_classifier"
        config = transformers.VideoMAEConfig(
            **sizes, num_frames=6, tubelet_size=2, use_mean_pooling=pooling
        )
    if facts.label_names:
        config.id2label = dict(enumerate(facts.label_names))
    torch.manual_seed(0)
    model = getattr(transformers, CLASSES[kind])(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def arrays(model: Any) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@ALL
def test_their_class_loads_what_we_write(tmp_path: Path, kind: Kind) -> None:
    huggingface.write(tmp_path / "ours", kind, state(kind), FACTS[kind])
    model = load(tmp_path / "ours", kind)
    assert model.dtype == torch.float32
    model.save_pretrained(tmp_path / "theirs")
    back = huggingface.read(tmp_path / "theirs")
    assert_same(back.state, state(kind))
    assert back.facts == dataclasses.replace(FACTS[kind], pixel_mean=None, pixel_std=None)


@ALL
def test_what_they_save_goes_there_and_back(tmp_path: Path, kind: Kind) -> None:
    model = fresh(kind)
    model.save_pretrained(tmp_path / "theirs")
    found = huggingface.read(tmp_path / "theirs")
    facts = dataclasses.replace(FACTS[kind], pixel_mean=None, pixel_std=None)
    assert found.facts == facts
    huggingface.write(tmp_path / "ours", kind, found.state, FACTS[kind])
    assert_same(arrays(load(tmp_path / "ours", kind)), arrays(model))


@ALL
def test_queries_keys_and_values_are_fused_in_this_order(tmp_path: Path, kind: Kind) -> None:
    model = fresh(kind)
    model.save_pretrained(tmp_path)
    found, inner = huggingface.read(tmp_path).state, arrays(model)
    if kind == "mae_pretraining":
        block = "blocks.1"
        names = [f"vit.layers.1.attention.{part}_proj" for part in "qkv"]
        bias = np.concatenate([inner[f"{name}.bias"] for name in names])
        np.testing.assert_array_equal(found[f"{block}.attn.qkv.bias"], bias)
    else:
        block = "encoder.blocks.1" if kind == "videomae_pretraining" else "blocks.1"
        attention = "videomae.encoder.layer.1.attention.attention"
        names = [f"{attention}.{part}" for part in ("query", "key", "value")]
        for name, letter in ((names[0], "q"), (names[2], "v")):
            bias = inner[f"{name}.bias"]
            np.testing.assert_array_equal(found[f"{block}.attn.{letter}_bias"], bias)
    weight = np.concatenate([inner[f"{name}.weight"] for name in names])
    np.testing.assert_array_equal(found[f"{block}.attn.qkv.weight"], weight)


@ALL
def test_their_shards_their_inner_names_and_their_pickles_are_read(
    tmp_path: Path, kind: Kind
) -> None:
    model = fresh(kind)
    model.save_pretrained(tmp_path / "whole")
    expected = huggingface.read(tmp_path / "whole").state
    model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    assert_same(huggingface.read(tmp_path / "shards").state, expected)
    (tmp_path / "whole" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "whole" / "pytorch_model.bin")
    assert_same(huggingface.read(tmp_path / "whole").state, expected)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    model = fresh("videomae_classifier").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    found = huggingface.read(tmp_path).state["head.weight"]
    expected = model.classifier.weight.detach().float().numpy()
    np.testing.assert_array_equal(found, expected, strict=True)


def test_the_epsilons_that_their_classes_have(tmp_path: Path) -> None:
    kind: Kind = "videomae_classifier"
    facts = dataclasses.replace(FACTS[kind], norm_epsilon=1e-3)
    huggingface.write(tmp_path, kind, state(kind), facts)
    model = load(tmp_path, kind)
    assert model.fc_norm.eps == FC_NORM_EPSILON
    assert model.videomae.encoder.layer[0].layernorm_before.eps == 1e-3


def test_a_classifier_of_the_first_token_goes_there_and_back(tmp_path: Path) -> None:
    kind: Kind = "videomae_classifier"
    huggingface.write(tmp_path / "ours", kind, first_token_state(), FIRST_TOKEN)
    model = load(tmp_path / "ours", kind)
    assert model.fc_norm is None
    model.save_pretrained(tmp_path / "theirs")
    back = huggingface.read(tmp_path / "theirs")
    assert_same(back.state, first_token_state())
    assert back.facts == dataclasses.replace(FIRST_TOKEN, pixel_mean=None, pixel_std=None)


def test_labels_reach_their_config(tmp_path: Path) -> None:
    kind: Kind = "videomae_classifier"
    huggingface.write(tmp_path, kind, state(kind), FACTS[kind])
    config = load(tmp_path, kind).config
    assert config.id2label == dict(enumerate(FACTS[kind].label_names))
    assert config.label2id["élan"] == 3


@ALL
@pytest.mark.filterwarnings("ignore")  # they would rather have torchvision
def test_their_processor_makes_our_pixels(tmp_path: Path, kind: Kind) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    facts = dataclasses.replace(FACTS[kind], pixel_mean=mean, pixel_std=std)
    huggingface.write(tmp_path, kind, state(kind), facts)
    name = "ViTImageProcessor" if kind == "mae_pretraining" else "VideoMAEImageProcessor"
    processor = getattr(transformers, name).from_pretrained(tmp_path, local_files_only=True)
    frames = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    pixels = np.asarray(processor(list(frames), return_tensors="np")["pixel_values"])
    expected = (frames / 255 - np.array(mean)) / np.array(std)
    found = pixels.reshape(6, 3, 16, 16).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    wide = np.zeros((20, 40, 3), np.uint8)
    pixels = np.asarray(processor([wide] * 6, return_tensors="np")["pixel_values"])
    assert pixels.reshape(6, 3, -1).shape == (6, 3, 16 * 16)

    processor.save_pretrained(tmp_path)
    again = huggingface.read(tmp_path).facts
    assert (again.pixel_mean, again.pixel_std) == (mean, std)
