"""Predicted against measured, over families and settings: the peak of a step, and what a kept bottom saves in time.

    course costs --dry-run      what would be measured
    course costs                measure what is missing; stop and go on at any time
    course costs --show         the numbers so far

A point is one real step of a model with random weights on the CPU. Measured is the most that PyTorch's allocator
held in it, on top of the tensors that stand beside it all the time (`allocated_at_most`): the quantity that `budget`
predicts. What a process takes besides (code, the libraries' own buffers, what the allocator keeps back) is another
question, which `course memory` answers for one model.

A time is ln(step with the frozen bottom kept / the same step without), on the 125M shape, in alternating pairs of one
process with one thread; the clock counts the process's own work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch

from helpers import files
from helpers.costs import (
    BottomSize,
    Budget,
    LoraSize,
    ReplaySize,
    allocated_at_most,
    budget,
    compare,
)
from helpers.freezing import COURSE_PLANS, LORA_PLAN, FreezePlan, find_bottom, insert
from helpers.measuring import paired_log_ratios
from helpers.models import build_model, divergence_loss, enable_checkpointing, mini_config, next_token_loss
from helpers.study.measured_costs import COSTS, bottom_table
from helpers.study.processes import config_of, continued
from helpers.training import Replay

FILE = COSTS
SHAPES = ((1, 64), (4, 64), (4, 128))  # windows at a time, tokens
WIDTH, INNER, N_LAYERS, N_HEADS, VOCABULARY = 256, 704, 2, 4, 8192
N_REPLAYED = 12  # windows
N_PAIRS = 6
FROZEN_BLOCKS = (6, 9)  # of the 125M's 12: half, and three quarters
TIMED_AT = (4, 512)


def configs() -> dict:
    """The six families in one small shape; OPT and GPT-2 with their dropout of 0.1."""
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig, Qwen2Config

    usual = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "max_position_embeddings": 128,
    }
    grouped = usual | {"intermediate_size": INNER, "num_key_value_heads": 2}
    return {
        "gpt_neo": mini_config(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_layers=N_LAYERS, num_heads=N_HEADS,
            intermediate_size=4 * WIDTH, attention_types=[[["global", "local"], 1]],
        ),
        "gpt2": GPT2Config(
            vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=N_LAYERS, n_head=N_HEADS, n_positions=128,
            bos_token_id=0, eos_token_id=0,
        ),
        "opt": OPTConfig(**usual, ffn_dim=4 * WIDTH, word_embed_proj_dim=WIDTH),
        "gpt_neox": GPTNeoXConfig(**usual, intermediate_size=4 * WIDTH),
        "llama": LlamaConfig(**grouped),
        "qwen2": Qwen2Config(**grouped, tie_word_embeddings=True),
    }  # fmt: skip


def points() -> Iterator[dict]:
    """Every point: family, plan, batch and length, and what is changed of the plain step."""
    for family in configs():
        for plan in ("full", "attention+embeddings", "mlp", "first-half", "only-norms"):
            yield from at_shapes(family, plan)
        for plan in ("full", "attention+embeddings"):
            yield from at_shapes(family, plan, checkpointing=True)
            yield from at_shapes(family, plan, n_parts=3)
        for limit in (0, 10**9):  # hidden states are kept, or log-probabilities
            yield from at_shapes(family, "attention+embeddings", replay_limit=limit, last=1)
        for plan in ("attention+embeddings", "first-half"):
            yield from at_shapes(family, plan, bfloat16=True, last=2)
        if family != "gpt2":  # its layers are no nn.Linear
            yield from at_shapes(family, "lora", last=2)
        if family not in ("gpt2", "opt"):  # they have dropout
            yield from at_shapes(family, "first-half", keeps_bottom=True, last=2)


def at_shapes(family: str, plan: str, last: int = len(SHAPES), **changes) -> Iterator[dict]:
    """A setting at the last so many shapes."""
    for batch, length in SHAPES[-last:]:
        yield {"family": family, "plan": plan, "batch": batch, "length": length, **changes}


def plan_of(point: dict) -> FreezePlan:
    """The plan itself, where the point names none of the course's."""
    if isinstance(point["plan"], FreezePlan):
        return point["plan"]
    return LORA_PLAN if point["plan"] == "lora" else COURSE_PLANS[point["plan"]]


def predicted(point: dict, config) -> Budget:
    """The budget of a point."""
    batch, length = point["batch"], point["length"]
    kept = {}
    if "replay_limit" in point:
        kept["replay"] = ReplaySize(N_REPLAYED, batch, length, keeps_predictions=point["replay_limit"] > 0)
    if point.get("keeps_bottom"):
        kept["bottom"] = BottomSize(batch * length)
    if point["plan"] == "lora":
        kept["lora"] = LoraSize(point.get("lora", "attention"), 8)
    if point.get("bfloat16"):
        kept |= {"dtype": torch.bfloat16, "frozen_dtype": torch.bfloat16}
    return budget(
        config, plan_of(point), batch, length,
        checkpointing=point.get("checkpointing", False), n_parts=point.get("n_parts", 1), **kept,
    )  # fmt: skip


def replay_of(point: dict, model) -> Replay:
    return Replay(
        model, windows(N_REPLAYED, point["length"]), batch=point["batch"], limit=point["replay_limit"]
    )


def windows(n: int, length: int) -> torch.Tensor:
    return torch.randint(1000, (n, length), generator=torch.Generator().manual_seed(0))


def measured(point: dict, config) -> int:
    """Bytes of the tensors that stand beside a step, and the most that were held on top of them in it."""
    model = build_model(config).train()
    replay = replay_of(point, model) if "replay_limit" in point else None
    if point["plan"] == "lora":
        insert(model, point.get("lora", "attention"), rank=8, alpha=16)
    plan_of(point).apply(model)
    if point.get("checkpointing"):
        enable_checkpointing(model)
    is_half, ids = point.get("bfloat16", False), windows(point["batch"], point["length"])
    if is_half:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    bottom = find_bottom(model, ids, ids.numel()) if point.get("keeps_bottom") else None
    adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def step() -> None:
        if replay is not None:
            rows = torch.arange(point["batch"])
            divergence_loss(model, replay.windows[rows], replay.base_of(rows)).backward()
        for _ in range(point.get("n_parts", 1)):
            with (
                bottom.reading(ids) if bottom else nullcontext(),
                torch.autocast("cpu", torch.bfloat16, enabled=is_half),
            ):
                total, _ = next_token_loss(model, ids)
            total.backward()
            del total
        adamw.step()
        adamw.zero_grad()

    step()  # makes the moments, and what is kept of a bottom
    moments = [t for state in adamw.state.values() for t in state.values()]
    stand = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), *moments))
    return stand + sum(kept.n_bytes for kept in (replay, bottom) if kept) + allocated_at_most(step)


def time_of(n_frozen: int, shape: str = "125m") -> dict:
    """A step with so many frozen blocks kept, against the same step that computes them."""
    config, (batch, length) = config_of(shape), TIMED_AT if shape == "125m" else (2, 32)
    plan = FreezePlan.freeze("embeddings", f"layers:0-{n_frozen - 1}")
    ids = torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
    model = build_model(config).train()
    plan.apply(model)
    adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    bottom = find_bottom(model, ids, ids.numel())

    def step(kept) -> None:
        with bottom.reading(ids) if kept else nullcontext():
            total, n_tokens = next_token_loss(model, ids)
        (total / n_tokens).backward()
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    logs = paired_log_ratios(
        lambda: step(True), lambda: step(False), n_pairs=N_PAIRS, best_of=1, warmup=2, clock=time.process_time
    )
    plainly, once = (
        budget(config, plan, batch, length, bottom=kept) for kept in (None, BottomSize(ids.numel()))
    )
    return {
        "n_frozen": n_frozen,
        "n_blocks": config.num_layers,
        "batch": batch,
        "length": length,
        "log_ratios": [round(log, 4) for log in logs],
        "predicted_ratio": round(compare(plainly, once)["step_flops"], 4),
    }


# --- the record --------------------------------------------------------------------


def identity() -> dict:
    """What all points of one file must have in common."""
    from helpers.session import machine_class, versions

    return {"machine": machine_class(), "n_threads": torch.get_num_threads(), "versions": versions()}


def settings_of(entry: dict) -> dict:
    """A recorded point without its numbers."""
    return {key: value for key, value in entry.items() if key not in ("predicted", "measured")}


def record(file: Path = FILE, dry_run: bool = False, show: bool = False, shape: str = "125m") -> None:
    """Measure what is missing, point by point; the file is whole at any moment. Then print the numbers so far.

    Raises:
        SystemExit: the file was measured elsewhere.
    """
    torch.set_num_threads(1)
    found = continued(file, identity(), times=[], points=[])
    there = [settings_of(entry) for entry in found["points"]]
    missing = [point for point in points() if point not in there]
    untimed = [n for n in FROZEN_BLOCKS if n not in [entry["n_frozen"] for entry in found["times"]]]
    if show and not found["times"] and not found["points"]:
        raise SystemExit(f"Nothing is measured yet in '{file}'. Measure it: course costs")
    if not show:
        print(
            f"{files.counted(len(untimed), 'time')} and {files.counted(len(missing), 'point')} are missing",
            flush=True,
        )
    if dry_run or show:
        missing, untimed = [], []
    for n_frozen in untimed:
        found["times"].append(time_of(n_frozen, shape))
        write(file, found)
    known = configs()
    for point in missing:
        config = known[point["family"]]
        at_peak = {kind: size for kind, size in predicted(point, config).at_peak.items() if size}
        found["points"].append(point | {"predicted": at_peak, "measured": measured(point, config)})
        write(file, found)
    print(*lines(found), sep="\n")


def write(file: Path, found: dict) -> None:
    """One line a point: small, and the difference of two records can be read."""
    parts = {key: json.dumps(value) for key, value in found.items()}
    for key in ("times", "points"):
        rows = ",\n".join(json.dumps(entry) for entry in found[key])
        parts[key] = f"[\n{rows}\n]"
    body = ",\n".join(f'"{key}": {text}' for key, text in parts.items())
    files.write_text(file, f"{{\n{body}\n}}\n")


def errors(found: dict) -> list[float]:
    """|predicted / measured - 1| of each point, in the order of the record."""
    return [abs(sum(p["predicted"].values()) / p["measured"] - 1) for p in found["points"]]


def lines(found: dict) -> Iterator[str]:
    """What the record says."""
    for (n_frozen, n_blocks), row in bottom_table(found).iterrows():
        yield (
            f"{n_frozen} of {n_blocks} blocks kept: {row.measured:.3f} of the same step's time, FLOPs say "
            f"{row.predicted:.3f} ({files.counted(int(row.n_pairs), 'pair')})"
        )
    if off := errors(found):
        worst = found["points"][off.index(max(off))]
        yield (
            f"{files.counted(len(off), 'point')}: {median(off):.2%} off in the median, {max(off):.2%} at most "
            f"({', '.join(f'{k} {v}' for k, v in settings_of(worst).items())})"
        )
