"""`python -m ava_pipeline.bench`: the same as `ava-pipeline bench`."""

import sys

import typer

from ava_pipeline.bench.command import bench_command
from ava_pipeline.errors import AvaPipelineError

if __name__ == "__main__":
    try:
        typer.run(bench_command)
    except AvaPipelineError as error:
        sys.exit(str(error))
