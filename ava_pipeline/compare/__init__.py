"""Two runs compared: where do they part, in settings, tables, held-out samples and weights?"""
