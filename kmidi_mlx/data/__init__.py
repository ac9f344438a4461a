"""Prepared data: manifests, memory-mapped shards, synthetic sets, batches."""
