"""Measurements of the parts of a training run: python -m adamae_jax.benchmark COMMAND."""
