"""The AVA training job that hosts the telemetry."""
