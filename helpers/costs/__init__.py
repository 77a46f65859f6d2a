"""Costs: what a step costs, predicted and counted."""

from helpers import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "closed_form": ["is_quick", "predictor"],
        "meter": ["KINDS", "StepMeter", "allocated_at_most"],
        "reasons": ["CostReasons", "explain_cost"],
        "scaling": [
            "BFLOAT16",
            "DEVICES",
            "FLOAT32",
            "GIB",
            "Plan",
            "RESERVE",
            "WITHOUT_BFLOAT16",
            "gpt_neo_1_3b_config",
            "llama_2_70b_config",
            "llama_2_7b_config",
        ],
        "step_cost": [
            "BottomSize",
            "Budget",
            "BudgetError",
            "LoraSize",
            "MIB",
            "NotPredicted",
            "ReplaySize",
            "budget",
            "budget_or_reason",
            "compare",
        ],
    },
)
