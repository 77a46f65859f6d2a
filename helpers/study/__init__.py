"""The study: its protocol, its runs, its records. It writes data/evidence."""

from helpers import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "measured_costs": [
            "BENCHMARK",
            "COSTS",
            "MEMORY",
            "against_best",
            "bottom_table",
            "by_plan",
            "falls",
            "largest_setting",
            "memory_table",
            "memory_verdict",
            "plan_time_ratio",
            "read",
            "time_table",
            "time_verdict",
        ],
        "protocol": ["PAGE", "Protocol", "read_protocol"],
        "packing": ["pack", "unpack"],
        "records": ["is_recorded", "read_record", "read_runs"],
        "second_study": ["LORA", "LORA_LAYERS", "plan_of"],
        "tables": ["RecordError", "stored"],
    },
    modules=["laboratory"],
)
