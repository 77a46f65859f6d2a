"""Freezing: selectors, plans, the proof, gradual unfreezing, LoRA beside it."""

from helpers import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "bottom": ["BottomError", "FrozenBottom", "LIMIT", "find_bottom", "frozen_blocks", "skipping"],
        "lora": [
            "LORA_PLAN",
            "LoRALinear",
            "LoraError",
            "base_hash",
            "equal_ranks",
            "insert",
            "layers_of",
            "load_adapter",
            "merge",
            "n_adapter_parameters",
            "save_adapter",
            "unload",
            "unmerge",
        ],
        "plans": [
            "COURSE_PLANS",
            "PLANS",
            "FreezePlan",
            "Ledger",
            "LedgerRow",
            "NamedPlan",
            "key_of",
            "require_plan",
            "undo",
        ],
        "proof": ["FreezingError", "Proof", "freezing_proof", "require_optimizers", "snapshot"],
        "selectors": ["PlanError", "parse_selectors", "select"],
        "unfreezing": ["change_plan", "layer_by_layer"],
        "watch": ["Watch", "require_every"],
    },
)
