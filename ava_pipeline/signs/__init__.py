"""The warning signs: pure rules over rows, checked while training by the worker, and afterwards by `diagnose`."""
