"""Tests of ava_pipeline, one folder a room."""
