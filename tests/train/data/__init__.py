"""Tests of ava_pipeline.train.data."""
