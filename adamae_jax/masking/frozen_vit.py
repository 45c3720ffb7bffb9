"""What strategies share that look at clips with the frozen encoder of an image MAE.

It sees single frames: of a video the middle frame of each time step's tubelets.
"""

import dataclasses
from typing import Any

import einops
from jaxtyping import Array, Float

from adamae_jax.errors import UserError
from adamae_jax.masking import base
from adamae_jax.models.encoder import Encoder
from adamae_jax.models.transformer import TransformerSpec
from adamae_jax.models.tubelets import ClipGeometry, Grid


@dataclasses.dataclass(frozen=True)
class FrozenVitStrategy(base.MaskingStrategy):
    """The base of these strategies; the defaults are those of a published ViT-B.

    Attributes:
      pretrained: the image MAE whose encoder is held frozen: a run or model directory.
      vit_width: token width of that encoder.
      vit_depth: its blocks.
      vit_num_heads: its attention heads.
      vit_norm_epsilon: epsilon of its layer norms.
    """

    pretrained: str = ""
    vit_width: int = 768
    vit_depth: int = 12
    vit_num_heads: int = 12
    vit_norm_epsilon: float = 1e-6

    def check(self, grid: Grid, token_width: int) -> None:
        """Raises a `UserError` also where no encoder has such sizes."""
        super().check(grid, token_width)
        self._vit_spec()

    def frozen_source(self) -> str:
        """The directory of the image MAE.

        Raises:
          UserError: where none is given.
        """
        if not self.pretrained:
            raise UserError(
                "masking.options.pretrained is empty: this masking looks at clips with the encoder "
                "of a pretrained image MAE; give --config.masking.options.pretrained=DIR, a run or "
                "model directory"
            )
        return self.pretrained

    def adopt(self, encoder: Encoder, params: Any, grid: Grid) -> Any:
        """Takes the encoder of an image MAE as the frozen ViT."""
        spec = encoder.spec
        found = {
            "vit_width": spec.width,
            "vit_depth": spec.depth,
            "vit_num_heads": spec.num_heads,
            "vit_norm_epsilon": spec.norm_epsilon,
        }
        wrong = [
            f"masking.options.{name}={value}"
            for name, value in found.items()
            if value != getattr(self, name)
        ]
        if wrong:
            raise UserError(
                f"the image MAE {self.pretrained} has another shape: set {', '.join(wrong)}"
            )
        if (encoder.positions, encoder.class_token) != ("sincos_2d", True):
            raise UserError(
                f"{self.pretrained} is no image MAE: it has positions {encoder.positions!r} and "
                f"{'a' if encoder.class_token else 'no'} class token; 'sincos_2d' and a class "
                "token are needed"
            )
        if encoder.geometry.grid[1:] != grid[1:]:
            raise UserError(
                f"the image MAE {self.pretrained} cuts its images into {encoder.geometry.grid[1:]} "
                f"patches and this model its frames into {grid[1:]}: they must be the same"
            )
        return {"vit": params}

    def _vit_spec(self, **execution: Any) -> TransformerSpec:
        try:
            return TransformerSpec(
                self.vit_width,
                self.vit_depth,
                self.vit_num_heads,
                attention_bias="qkv",
                norm_epsilon=self.vit_norm_epsilon,
                **execution,
            )
        except UserError as error:
            raise UserError(f"masking.options.vit_*: {error}") from error

    def vit(self, clip: ClipGeometry, **execution: Any) -> Encoder:
        """The frozen ViT's definition, for single frames of a clip."""
        image = dataclasses.replace(clip, num_frames=1, tubelet_size=1)
        spec = self._vit_spec(**execution)
        return Encoder(image, spec, positions="sincos_2d", class_token=True)

    def vit_of(self, inputs: base.MaskInputs) -> Encoder:
        """The frozen ViT's definition, for frames of the given clips."""
        *_, rows, columns, channels = inputs.video.shape
        clip = ClipGeometry(1, (rows, columns), 1, rows // inputs.grid[1], channels)
        return self.vit(clip, **inputs.execution)


def middle_frames(inputs: base.MaskInputs) -> Float[Array, "frames 1 H W C"]:
    """One image for each time step of the grid: the middle frame of its tubelets."""
    depth = inputs.video.shape[1] // inputs.grid[0]
    frames = inputs.video[:, depth // 2 :: depth]
    return einops.rearrange(frames, "b T H W C -> (b T) 1 H W C")
