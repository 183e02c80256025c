"""Benchmarks of single parts of ava_pipeline, some of them gates with a target."""
