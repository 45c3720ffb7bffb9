"""Weights in and out: python -m adamae_jax.convert import|export."""
