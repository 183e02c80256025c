"""Tests of ava_pipeline.config."""
