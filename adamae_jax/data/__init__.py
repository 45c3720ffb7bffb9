"""Videos on disk to TFRecord shards to batches of uint8 clips; knows no model and no JAX."""
