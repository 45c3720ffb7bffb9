"""The recipes in configs/, as their tests look at them."""

import importlib
import pathlib
from types import ModuleType
from typing import Any, Literal

import numpy as np
from ml_collections import ConfigDict

from adamae_jax.config import resolve
from adamae_jax.data import schema
from adamae_jax.data.clips import ClipSpec, make_clips
from adamae_jax.data.examples import VideoLayout
from tests.data import fixtures

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
ALL = sorted({path.stem for path in CONFIGS.glob("*.py")} - {"common", "finetuning"})


def names(kind: Literal["pretraining", "finetune"]) -> list[str]:
    """The recipes of a kind, without the demos."""
    found = [stem for stem in ALL if not stem.endswith(("demo", "_linear"))]  # see test_probe
    return [stem for stem in found if stem.endswith("_finetune") == (kind == "finetune")]


def module(name: str) -> ModuleType:
    return importlib.import_module(f"configs.{name}")


def resolved(recipe: str) -> ConfigDict:
    name, _, size = recipe.partition(":")
    return resolve(module(name).get_config(*([size] if size else [])), 0)


def coloured_record(num_frames: int, rate: float) -> Any:
    """A video whose frames have their number in red and green."""
    numbers = np.arange(num_frames)
    colours = 16 * np.stack([numbers % 16, numbers // 16, 0 * numbers], -1) + 8
    pixels = colours[:, None, None].astype(np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    changes: dict[str, Any] = {schema.RATE: rate}
    payload = fixtures.serialize(pixels, **changes)
    return VideoLayout(has_foreground=False).parse(payload)


def frames_in_the_middle(spec: ClipSpec, num_frames: int, rate: float) -> list[int]:
    """Which frames of a video the clip in its middle shows, read off its colours."""
    (video,) = make_clips(coloured_record(num_frames, rate), spec, [None])["video"]
    assert video.shape == spec.video_shape
    red, green, _ = video[:, 112, 112].T // 16
    return [int(number) for number in red + 16 * green]
