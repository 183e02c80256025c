"""Tests of ava_pipeline.diagnose."""
