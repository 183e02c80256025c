"""`python -m ava_pipeline`: the same as the command `ava-pipeline`."""

from ava_pipeline.cli import main

if __name__ == "__main__":
    main()
