"""Tests of ava_pipeline.evaluation."""
