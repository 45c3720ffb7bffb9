"""adamae-jax: adaptive masked autoencoding of video in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamae_jax.stored import load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Data workers import this package and must not pay for JAX.
    if name == "load":
        from adamae_jax.stored import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
