"""Settings: their models, how YAML and overrides become one of them, and what is wrong with them in words."""
