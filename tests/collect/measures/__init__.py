"""Tests of ava_pipeline.collect.measures."""
