"""Tests of ava_pipeline.report."""
