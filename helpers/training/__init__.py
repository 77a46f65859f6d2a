"""Training: the loop, its runs, checkpoints and deltas, several processes."""

from helpers import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "adapters": ["export_delta", "export_merged", "export_peft", "import_peft"],
        "checkpoints": [
            "Checkpoint",
            "load_checkpoint",
            "optimizer_tensors",
            "restore_optimizer",
            "save_checkpoint",
        ],
        "command": ["TrainWords", "answer", "say", "train_command"],
        "deltas": ["DeltaError", "base_record", "load_delta", "save_delta"],
        "guard": ["FreezeGuard"],
        "loop": ["FitResult", "NotFinite", "TokenLoss", "build_optimizer", "fit", "set_rate", "train"],
        "processes": ["from_all", "is_main", "join", "launch", "n_processes", "own_share"],
        "replay": ["Replay"],
        "rewinding": ["choose_share", "rewound"],
        "interrupts": ["Stopped", "ctrl_c_at_once", "stopped_by_ctrl_c"],
        "sharding": ["held_by_each", "shard", "whole"],
        "runs": ["TrainSettings", "TrainingError", "batch_rows"],
    },
    modules=["checkpoints", "locks", "shell"],
)
