"""Tests of the AVA training job."""
