"""Tests of ava_pipeline.watch."""
