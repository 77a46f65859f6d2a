"""A second study of seconds: a protocol of a few short runs; its base is one of `tiny.saved`."""

from pathlib import Path

from helpers.profiles import TINY

PAGE = """# A small study

```toml
[study]
profiles = ["tiny"]
order = ["first", "replay"]
tuning_seeds = [900]
dev_chapters = 2
shares = [0.5, 1.0]
role_shares = [0.5]
rewound_roles = ["attention", "mlp", "embeddings"]

[texts]
alice = "TEXTS/alice.txt"
viet = "TEXTS/nowhere.txt"
plain = "TEXTS/plain.txt"

[tiny]
profile = "tiny"
batch = 2
length = 32
warmup = 1
precision = "float32"
max_steps = 12
patience = 4e-2
evaluate_every = 2e-2
dense_until = 0.0
save_every = 2
held_out_windows = 4
plain_windows = 3
retention_windows = 4
retention_length = 24
retention_seeds = {A = 1, B = 2}
replay_windows = 6
replay_length = 24
replay_seed = 3
replay_batch = 2
lora_rank = 2
seconds_a_run = 36

[[tiny.stages]]
name = "first"
plans = ["full", "attention+embeddings"]
rates = [1e-2]
weights = [0.0]
texts = ["alice"]
seeds = [900, 0, 1]

[[tiny.stages]]
name = "replay"
plans = ["full", "lora"]
rates = [1e-2]
weights = [0.0, 1.0]
texts = ["alice", "viet"]
seeds = [0]
```
"""


def write_page(folder: Path) -> Path:
    """The protocol, and the beginnings of the course's texts that it names."""
    for name, path in TINY.texts.items():
        (folder / f"{name}.txt").write_text(path.read_text("utf-8")[:9000], encoding="utf-8")
    place = folder / "PROTOCOL-2.md"
    place.write_text(PAGE.replace("TEXTS", str(folder)), encoding="utf-8")
    return place
