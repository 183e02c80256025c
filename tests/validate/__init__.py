"""Tests of ava_pipeline.validate."""
