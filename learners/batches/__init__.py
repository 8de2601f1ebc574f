"""Samples to micro-batches: sorting, packing, shared prefixes."""
