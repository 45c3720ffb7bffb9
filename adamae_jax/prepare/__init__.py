"""Makes datasets to train on: python -m adamae_jax.prepare, and prepare verify DIR."""
