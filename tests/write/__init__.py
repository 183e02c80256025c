"""Tests of ava_pipeline.write."""
