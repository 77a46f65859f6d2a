"""What test_distributed.py runs in two processes. Each writes what it saw to OUT/<process>.json."""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from helpers.freezing.plans import FreezePlan
from helpers.models.loading import build_model, weight_hash
from helpers.models.losses import next_token_loss
from helpers.training import loop as training
from helpers.training.loop import TokenLoss, fit
from helpers.training.processes import join, means_lost_process
from helpers.training.replay import Replay
from helpers.training.runs import TrainingError, TrainSettings, batch_rows
from helpers.training.sharding import held_here, shard, whole
from support import tiny

SHAPE = tiny.SHAPE
CONFIG = tiny.config()
DROPOUT = tiny.config(resid_dropout=0.1)
MAIN = FreezePlan.freeze("attention", "embeddings")
WINDOWS = torch.randint(97, (10, 24), generator=torch.Generator().manual_seed(0))
N_STEPS, RATE = 4, 1e-3
EVERY_STEP = {"save_every": 1, "evaluate_every": 1}
RUNS = {
    "even": {},
    "uneven": {"batch": 5, "micro_batch": 1},
    "full": {"plan": FreezePlan.full()},
    "replay": {"replay": {"batch": 3, "weight": 2.0}},
    "replay in parts": {"replay": {"batch": 4, "limit": 0}, "batch": 5, "micro_batch": 1},
}


def run(config=CONFIG, plan=MAIN, folder=None, evaluate=None, replay=None, **changes):
    model = build_model(config, seed=1)
    if replay is not None:
        replay = Replay(model, WINDOWS[4:] + 1 - (WINDOWS[4:] == 96).long(), **replay)
    usual = {"n_steps": N_STEPS, "rate": RATE, "batch": 4, "evaluate_every": 2, "save_every": 2}
    settings = TrainSettings(**{**usual, **changes})
    return model, fit(
        model, plan, WINDOWS, settings, evaluate=evaluate, folder=folder, progress=False, replay=replay
    )


def tensors(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Stop(Exception):
    pass


def stop_at_two(model):
    if stop_at_two.calls == 1:
        raise Stop
    stop_at_two.calls += 1
    return {}


def facts(accelerator) -> dict:
    """Do two processes really talk, and what is the loss wrapped in?"""
    one = torch.tensor([10.0**accelerator.process_index])
    dist.all_reduce(one)  # 1 + 10
    model = build_model(CONFIG, seed=1)
    MAIN.apply(model)
    wrapped = accelerator.prepare(TokenLoss(model))
    return {
        "world": dist.get_world_size(),
        "all_reduce": one.item(),
        "backend": dist.get_backend(),
        "wrapped": type(wrapped).__name__,
        "threads": torch.get_num_threads(),
    }


def resumed(out: Path) -> dict:
    """A run with dropout, broken off at step 2 and taken up, beside one that was not."""
    unbroken, _ = run(DROPOUT)
    stop_at_two.calls = 0
    try:
        run(DROPOUT, folder=out / "resumed", evaluate=stop_at_two)
    except Stop:
        pass
    again, _ = run(DROPOUT, folder=out / "resumed", evaluate=lambda m: {})
    return {"unbroken": weight_hash(unbroken), "again": weight_hash(again)}


def nan_in_one(accelerator) -> str:
    """What each process says when the loss of process 1 alone is not a number."""

    def broken(model, ids):
        total, n = next_token_loss(model, ids)
        return total * (float("nan") if accelerator.process_index == 1 else 1.0), n

    training.next_token_loss = broken
    try:
        run()
    except TrainingError as error:
        return str(error)
    finally:
        training.next_token_loss = next_token_loss
    return "nothing"


def thawed_after_wrapping(accelerator) -> dict:
    """One step after which a tensor that was frozen when DDP saw it has been made trainable."""
    model = build_model(CONFIG, seed=1)
    MAIN.apply(model)
    wrapped = accelerator.prepare(TokenLoss(model))
    late = model.transformer.h[0].attn.attention.q_proj.weight.requires_grad_(True)
    wrapped(WINDOWS[accelerator.process_index : accelerator.process_index + 1]).backward()
    return {
        "late": late.grad.norm().item(),
        "early": model.transformer.h[0].mlp.c_fc.weight.grad.norm().item(),
    }


def frozen_after_wrapping(accelerator) -> str:
    """What DDP says in the second step when tensors were frozen after it was made."""
    model = build_model(CONFIG, seed=1)
    wrapped = accelerator.prepare(TokenLoss(model))
    MAIN.apply(model)
    try:
        for _ in range(2):
            wrapped(WINDOWS[:1]).backward()
    except RuntimeError as error:
        assert not means_lost_process(error)
        return str(error).splitlines()[0]
    return "nothing"


def sharded(accelerator) -> dict:
    """The run of `run` under FSDP2, in the plainest loop."""
    model = build_model(CONFIG, seed=1)
    MAIN.apply(model)
    n_before = sum(p.numel() for p in model.parameters())
    loss_of = shard(TokenLoss(model))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0
    )
    moments = set()
    for step in range(N_STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 5)
        rows = batch_rows(len(WINDOWS), 4, step, seed=0)
        mine = rows.reshape(2, 2)[accelerator.process_index]
        total = loss_of(WINDOWS[mine])
        (total * 2 / (4 * 23)).backward()
        optimizer.step()
        moments = {tuple(s["exp_avg"].to_local().shape) for s in optimizer.state.values()}
        optimizer.zero_grad(set_to_none=True)
    n_held = held_here(loss_of)
    ties = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    saved = {n: whole(p).detach().clone() for n, p in model.named_parameters()}
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    return {
        "type": type(loss_of).__name__,
        "block": type(model.transformer.h[0]).__name__,
        "n_before": n_before,
        "n_held": n_held,
        "tied": ties,
        "n_frozen": len(frozen),
        "local_moments": len(moments),
        "tensors": saved,
    }


def all_cases(out: Path) -> None:
    accelerator = join(torch.device("cpu"))
    me = accelerator.process_index
    seen = {"facts": facts(accelerator)}
    for name, changes in RUNS.items():
        model, result = run(folder=out / name, evaluate=lambda m: {"held_out_loss": 1.0}, **changes)
        seen[name] = {"hash": weight_hash(model), "proof": result.proof.ok, "steps": result.history.steps}
        if me == 0:
            save_file(tensors(model), out / f"{name}.safetensors")
    model, _ = run(evaluate=lambda m: {"held_out_loss": 1.0}, **EVERY_STEP, n_steps=12)
    seen["unbroken"] = weight_hash(model)
    seen["resumed"] = resumed(out)
    seen["nan"] = nan_in_one(accelerator)
    seen["thawed"] = thawed_after_wrapping(accelerator)
    seen["fsdp"] = sharded(accelerator)
    weights = seen["fsdp"].pop("tensors")
    if me == 0:
        save_file(weights, out / "fsdp.safetensors")
    seen["frozen_late"] = frozen_after_wrapping(accelerator)  # last: it leaves DDP in a broken state
    (out / f"{me}.json").write_text(json.dumps(seen))


def long_run(out: Path) -> None:
    """A run that is long enough to lose a process in; says who it is, and which step it has done."""
    device = torch.device("cpu")
    me = join(device).process_index
    (out / f"pid-{me}").write_text(str(os.getpid()))

    def note(model):
        (out / f"at-{me}").write_text("x" * len(list((out / "run").glob("step-*"))))
        return {"held_out_loss": 1.0}

    model, _ = run(folder=out / "run", evaluate=note, **EVERY_STEP, n_steps=int(sys.argv[3]))
    (out / f"hash-{me}").write_text(weight_hash(model))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    {"all": all_cases, "long": long_run}[sys.argv[1]](Path(sys.argv[2]))
