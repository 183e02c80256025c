"""Tests of ava_pipeline.many_runs."""
