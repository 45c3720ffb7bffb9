"""config.json and preprocessor_config.json, as published and as people damage them."""

import math
from typing import Any

import pytest

from adamae_jax.errors import UserError
from adamae_jax.interop import huggingface_config
from adamae_jax.interop.huggingface import Blocks, Facts
from tests.interop.huggingface_models import FACTS

VIDEOMAE = huggingface_config.config_fields(FACTS["videomae_classifier"], "videomae_classifier")
PROCESSOR = huggingface_config.processor_fields(FACTS["videomae_classifier"], "videomae_classifier")


def test_fields_left_out_have_the_defaults_of_their_classes() -> None:
    base = Blocks(width=768, depth=12, num_heads=12, mlp_width=3072)
    video = {"architectures": ["VideoMAEForPreTraining"], "use_mean_pooling": False}
    assert huggingface_config.read_facts(video, "videomae_pretraining", "here") == Facts(
        image_size=(224, 224),
        patch_size=16,
        encoder=base,
        decoder=Blocks(width=384, depth=4, num_heads=6, mlp_width=1536),
        num_frames=16,
        tubelet_size=2,
        norm_epsilon=1e-12,
    )
    assert huggingface_config.read_facts({}, "mae_pretraining", "here") == Facts(
        image_size=(224, 224),
        patch_size=16,
        encoder=base,
        decoder=Blocks(width=512, depth=8, num_heads=16, mlp_width=2048),
        norm_epsilon=1e-12,
        norm_pix_loss=False,
        mask_ratio=0.75,
    )


def test_labels_without_names() -> None:
    def names(**fields: Any) -> tuple[str, ...]:
        config = {name: value for name, value in VIDEOMAE.items() if name != "id2label"} | fields
        return huggingface_config.read_facts(config, "videomae_classifier", "here").label_names

    assert names() == ("LABEL_0", "LABEL_1")
    assert names(num_labels=3) == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert names(id2label={"1": "b", "0": "a"}) == ("a", "b")


def test_the_last_norms_epsilon_is_what_their_class_has() -> None:
    """PyTorch's default in the norm of its own that goes with the mean, or that of all others."""
    for pooling, epsilon in ((True, 1e-5), (False, 1e-3)):
        config = VIDEOMAE | {"use_mean_pooling": pooling, "layer_norm_eps": 1e-3}
        facts = huggingface_config.read_facts(config, "videomae_classifier", "here")
        assert (facts.mean_pooling, facts.classifier_norm_epsilon) == (pooling, epsilon)


def test_a_bias_by_its_other_name() -> None:
    config = {name: value for name, value in VIDEOMAE.items() if name != "qv_bias"}
    facts = huggingface_config.read_facts(
        config | {"qkv_bias": False}, "videomae_classifier", "here"
    )
    assert not facts.qkv_bias


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("hidden_act", "relu", "'gelu'"),
        ("hidden_act", None, "'gelu'"),
        ("hidden_size", "768", "a positive integer"),
        ("hidden_size", 10**12, "a positive integer below"),
        ("num_hidden_layers", True, "a positive integer"),
        ("num_attention_heads", 5, "a divisor of 12"),
        ("image_size", [224], "a positive integer or two"),
        ("image_size", [0, 224], "a positive integer or two"),
        ("patch_size", [16, 8], "square patches"),
        ("qv_bias", 1, "true or false"),
        ("use_mean_pooling", None, "true or false"),
        ("layer_norm_eps", math.nan, "a number"),
        ("layer_norm_eps", -1, "a number"),
        ("id2label", {"0": "a", "2": "b"}, "without gaps"),
        ("id2label", {}, "without gaps"),
        ("id2label", ["a"], "without gaps"),
    ],
)
def test_other_values_are_refused_by_name(field: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError, match=f"^here: {field} is .*, expected .*{expected}"):
        huggingface_config.read_facts(VIDEOMAE | {field: value}, "videomae_classifier", "here")


def test_pretraining_with_pooling_is_refused() -> None:
    with pytest.raises(UserError, match="use_mean_pooling is True, expected false: .*last norm"):
        huggingface_config.read_facts({}, "videomae_pretraining", "here")


@pytest.mark.parametrize(
    "architectures", [None, [], ["VideoMAEModel"], "VideoMAEForPreTraining", ["ViTModel", "a"]]
)
def test_other_classes_are_refused(architectures: Any) -> None:
    with pytest.raises(UserError, match="here: architectures is .*VideoMAEForVideoClassification"):
        huggingface_config.read_kind({"architectures": architectures}, "here")


def test_pixels() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert huggingface_config.read_pixels(PROCESSOR, 3, "here") == (mean, std)
    old = {"size": 224, "image_mean": list(mean), "image_std": list(std)}
    assert huggingface_config.read_pixels(old, 3, "here") == (mean, std)
    plain = PROCESSOR | {"do_normalize": False}
    assert huggingface_config.read_pixels(plain, 3, "here") == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("do_rescale", False, "true"),
        ("rescale_factor", 1 / 127.5, "1/255"),
        ("image_mean", [0.5], "3 numbers"),
        ("image_mean", None, "3 numbers"),
        ("image_std", [0.5, 0.0, 0.5], "positive numbers"),
        ("image_std", [0.5, "0.5", 0.5], "3 numbers"),
    ],
)
def test_other_pixels_are_refused_by_name(field: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError, match=f"^here: {field} is .*, expected {expected}"):
        huggingface_config.read_pixels(PROCESSOR | {field: value}, 3, "here")
