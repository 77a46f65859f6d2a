"""Helpers behind the Frozen Attention notebooks: one idea a file.

Modules, in the order in which they may import each other:
profiles, attention, models, editions, downloads, corpora, anatomy, selectors, plans, freezing, losses, meter,
budget, checkpoints, evaluation, runs, training, museum, comparison, study, claims, plots, checks,
checks_00, checks_01, checks_02, checks_03, checks_04, checks_05, train.
"""

__version__ = "0.1.0"
