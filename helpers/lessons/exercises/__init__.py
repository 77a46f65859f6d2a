"""The exercises and their checks: one file a notebook."""
