"""Tests of ava_pipeline.collect."""
