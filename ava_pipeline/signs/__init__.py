"""The warning signs: pure rules over rows, run on line by the worker and afterwards by read/."""
