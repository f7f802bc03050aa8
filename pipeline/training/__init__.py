"""Training: token shards and a configuration in, checkpoints and metrics out."""
