"""All that makes a run happen: configuration, data, training loop and hooks, checkpoints, evaluation."""
