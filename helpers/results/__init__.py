"""Results: what the records say about the claims. They read data/evidence."""

from helpers import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "across_models": ["forgetting_by_model"],
        "cards": ["RECORDED", "card_text", "decision_card", "recorded_claims", "verdict_counts"],
        "claims": [
            "CLAIMS",
            "ClaimError",
            "is_number",
            "about",
            "load_claims",
            "number_of",
            "on_models",
            "record",
            "seeds_of",
            "store",
            "two_digits",
        ],
        "cost_answers": ["engine", "memory"],
        "lever_answers": ["Lever", "every_lever", "largest_levers"],
        "evidence": [
            "AUTHORS",
            "EVIDENCE",
            "REAL",
            "forgetting_finding",
            "forgetting_gap",
            "level_runs",
            "mean_style",
            "quality_finding",
            "read_evidence",
            "share_of_style",
            "studied_models",
            "style_findings",
        ],
        "notes": ["how_catastrophic", "losses_by_test", "numbers", "said"],
        "other_plans": ["every_plan"],
        "questions": ["QUESTIONS"],
        "recipe_answers": ["forgotten_first", "headline", "recorded_study", "short"],
        "scorecard": ["claim_cards"],
        "second_verdicts": ["FULL", "SecondStudy", "recorded_recipes"],
        "verdicts": ["newest", "published", "recorded_claim", "scoreboard_table"],
    },
    modules=["claims", "evidence", "lora_study", "verdicts"],
)
