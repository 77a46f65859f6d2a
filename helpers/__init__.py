"""Helpers behind the Frozen Attention notebooks: one idea a file.

Modules, in the order in which they may import each other:
profiles, models, corpora, anatomy, freezing, budget, losses, checkpoints,
evaluation, training, lora, study, claims, plots, widgets, checks, train.
"""

__version__ = "0.1.0"
