"""Gates and figures: what parts of ava_pipeline cost, against peers and against the machine's limits."""
