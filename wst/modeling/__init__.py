"""Language models: loading, generation, log-probabilities."""
