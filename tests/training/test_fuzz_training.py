"""Any settings, and any damaged file of a run, are right or refused in one line; nothing else changes."""

import copy
import json
import math
from functools import cache

import pytest
import torch
from hypothesis import strategies as st

from helpers.freezing.plans import FreezePlan
from helpers.models.loading import build_model, weight_hash
from helpers.training.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from helpers.training.deltas import DeltaError, base_record, load_delta, save_delta
from helpers.training.folders import check_out, refuse_other
from helpers.training.runs import TrainingError, TrainSettings
from support import tiny
from support.fuzz import damaged, damages, failed_once, folder, held, long, quick, right_or_refused, values

NAMES = (
    "n_steps", "rate", "batch", "seed", "micro_batch", "warmup", "weight_decay", "clip", "precision",
    "evaluate_every", "save_every",
)  # fmt: skip
settings_cases = st.dictionaries(st.sampled_from(NAMES), values, min_size=1, max_size=3)
checkpoint_cases = st.tuples(st.sampled_from(["state.json", "tensors.safetensors"]), damages)
record_cases = st.one_of(
    st.binary(max_size=40).map(bytes.hex),
    st.recursive(
        values, lambda v: st.dictionaries(st.sampled_from(["plan", "n_steps", "text_sha256"]), v)
    ).map(lambda v: json.dumps(v).encode("utf-8", "surrogatepass").hex()),
)
SMALL = tiny.config(hidden_size=8, num_heads=2, intermediate_size=8, max_position_embeddings=16)
PLAN = FreezePlan.only("norms")


def check_settings(changes):
    made = right_or_refused(lambda: TrainSettings(**{"n_steps": 3, "rate": 1e-3} | changes), TrainingError)
    if made is not None:
        rates = [made.rate_at(step) for step in (0, 1, made.n_steps)]
        assert all(math.isfinite(rate) and 0 <= rate <= made.rate for rate in rates)
        assert made.evaluates_at(made.n_steps) and made.saves_at(made.n_steps)
        assert json.loads(json.dumps(vars(made))) == vars(made), "a run's record holds it"


def says_the_same(content: bytes, whole: bytes) -> bool:
    """Equal to the byte; a record of JSON may also have other blanks between its words, and say the same."""
    if content == whole:
        return True
    try:
        found, wanted = json.loads(content), json.loads(whole)
    except ValueError:
        return False
    return json.dumps(found) == json.dumps(wanted)


def check_checkpoint(case):
    name, damage = case
    with folder() as place:
        for step in (1, 2):
            save_checkpoint(place, step, {"w": torch.full((5,), float(step))}, {"note": step})
        path = place / "step-00000002" / name
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, *damage))
        files = held(place)
        found = right_or_refused(lambda: load_checkpoint(place), CheckpointError)
        assert held(place) == files
        assert found is not None, "the one before it is whole"
        is_whole = says_the_same(path.read_bytes(), whole)
        assert found.step == (2 if is_whole else 1)
        assert torch.equal(found.tensors["w"], torch.full((5,), float(found.step)))


def check_record(content):
    with folder() as place:
        (place / "run.json").write_bytes(bytes.fromhex(content))
        files = held(place)

        def work():
            check_out(place)
            refuse_other(place, {"plan": "full", "n_steps": 3, "text_sha256": "a"})

        right_or_refused(work, TrainingError)
        assert held(place) == files


@cache
def saved_delta() -> tuple[torch.nn.Module, str, bytes]:
    """A base, the hash of the tuned model, and the delta between them."""
    base = build_model(SMALL)
    tuned = copy.deepcopy(base)
    PLAN.apply(tuned)
    with torch.no_grad(), folder() as place:
        for p in tuned.parameters():
            if p.requires_grad:
                p.add_(0.5)
        return base, weight_hash(tuned), save_delta(tuned, PLAN, base_record(base), place).read_bytes()


def check_delta(damage):
    base, tuned, raw = saved_delta()
    before = weight_hash(base)
    with folder() as place:
        (place / "delta.safetensors").write_bytes(damaged(raw, *damage))
        files = held(place)
        again = right_or_refused(lambda: load_delta(place, base), DeltaError)
        assert held(place) == files
    assert weight_hash(base) == before
    assert again is None or weight_hash(again) == tuned


CHECKS = {
    "settings": (settings_cases, check_settings),
    "checkpoint": (checkpoint_cases, check_checkpoint),
    "record": (record_cases, check_record),
    "delta": (damages, check_delta),
}
test_any_settings_are_right_or_refused = quick(*CHECKS["settings"])
test_a_damaged_checkpoint_is_passed_over = quick(*CHECKS["checkpoint"])
test_any_record_of_a_run_is_read_or_refused = quick(*CHECKS["record"])
test_a_damaged_delta_is_the_saved_one_or_refused = quick(*CHECKS["delta"])
test_two_thousand_settings = long(*CHECKS["settings"])
test_two_thousand_checkpoints = long(*CHECKS["checkpoint"])
test_two_thousand_records = long(*CHECKS["record"])
test_two_thousand_deltas = long(*CHECKS["delta"])


@pytest.mark.parametrize("kind, case", failed_once("training"), ids=json.dumps)
def test_a_case_that_failed_once(kind, case):
    CHECKS[kind][1](case)
