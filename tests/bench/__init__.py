"""Tests of ava_pipeline.bench."""
