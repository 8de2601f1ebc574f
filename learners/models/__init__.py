"""The models under training: adapters, references, the optimizer, tiny models from scratch."""
