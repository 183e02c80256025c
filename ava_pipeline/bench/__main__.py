"""`python -m ava_pipeline.bench`: the same as the command `ava-pipeline bench`."""

import sys

from ava_pipeline.cli import main

if __name__ == "__main__":
    main(["bench", *sys.argv[1:]])
