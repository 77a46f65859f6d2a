"""Helpers behind the Frozen Attention notebooks: one idea a file.

Modules, in the order in which they may import each other:
profiles, packages, rooms, drive, attention, models, editions, downloads, corpora, anatomy, selectors, plans,
freezing, losses, meter, budget, size_walk, closed_form, checkpoints, pretrained, bases, deltas, evaluation,
processes, locks, runs, training, sharding, unfreezing, scaling, lora, sizes, timing, museum, comparison, records,
protocol, decisions, trends, benchmarks, probes, study, claims, cards, stability, findings, notes, scoreboard, plots,
answers, lora_study, other_plans, levers, long_runs, across_models, costs, questions, widgets_frame, widgets_svg,
widgets_blocks, widgets_freezing, widgets_losses, widgets_memory, widgets_styles, widgets, checks, cases, checks_00,
checks_01, checks_01_instruments, checks_01_hooks, checks_02, checks_02_recipes, checks_03, checks_03_functions,
checks_04, checks_04_functions, checks_05, checks_05_functions, checks_06, checks_07, folders, reports, train.
"""

__version__ = "0.1.0"
