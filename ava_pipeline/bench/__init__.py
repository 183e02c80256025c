"""What telemetry costs on this machine: `python -m ava_pipeline.bench`, or `ava-pipeline bench`."""
