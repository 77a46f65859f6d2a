"""Replay: the KL term is exact, its windows depend on step and seed alone, and a run with it resumes bit for bit."""

import pytest
import torch
from torch.nn import functional as F

from helpers.freezing.plans import FreezePlan
from helpers.measuring.evaluation import Retention, sample_windows
from helpers.models.loading import build_model, weight_hash
from helpers.models.losses import CHUNK, divergence_loss
from helpers.models.model_files import ModelError
from helpers.training.loop import fit
from helpers.training.replay import Replay
from helpers.training.runs import TrainingError, TrainSettings
from support import tiny

SHAPE = tiny.SHAPE
CONFIG = tiny.config()
TEXT = torch.randint(97, (10, 24), generator=torch.Generator().manual_seed(0))
MAIN = FreezePlan.freeze("attention", "embeddings")
LIMITS = {"predictions": 10**9, "hidden states": 0}


def base_model():
    return build_model(CONFIG, seed=1)


def replay_of(base, n=9, **more):
    return Replay(base, sample_windows(base, n, 20, seed=7), **more)


def train(replay=True, plan=MAIN, folder=None, evaluate=None, double=False, **changes):
    base = base_model().double() if double else base_model()
    held = replay_of(base, **(replay if isinstance(replay, dict) else {})) if replay else None
    usual = {"n_steps": 6, "rate": 1e-2, "batch": 4, "evaluate_every": 2, "save_every": 2}
    model = base_model().double() if double else base_model()
    result = fit(
        model,
        plan,
        TEXT,
        TrainSettings(**{**usual, **changes}),
        evaluate=evaluate,
        folder=folder,
        progress=False,
        replay=held,
    )
    return model, result


def other_model():
    """Unlike the base, so that there is something to measure."""
    model = base_model()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return model


# --- the term ----------------------------------------------------------------------


@pytest.mark.parametrize("kept", LIMITS)
def test_what_is_kept_is_what_a_second_forward_pass_of_the_base_says(kept):
    base = base_model()
    replay = replay_of(base, limit=LIMITS[kept])
    assert replay.keeps_predictions == (kept == "predictions")
    rows = [5, 0, 3]
    with torch.no_grad():
        again = torch.log_softmax(base(replay.windows[rows]).logits[:, :-1], -1).flatten(
            0, 1
        )  # (3 * 19, vocab)
    found = torch.cat([replay.base_of(rows)(slice(s, s + 10)) for s in range(0, len(again), 10)])
    assert (found - again).abs().max() < 1e-4


@pytest.mark.parametrize("kept", LIMITS)
@pytest.mark.parametrize("windows", [3, 40])  # fewer tokens than a chunk, and more
def test_the_term_and_its_gradient_are_those_of_pytorchs_kl(kept, windows):
    base, model = base_model(), other_model()
    replay = replay_of(base, n=windows, limit=LIMITS[kept])
    assert (windows * 19 > CHUNK) == (windows == 40)
    rows = list(range(windows))
    total = divergence_loss(model, replay.windows, replay.base_of(rows))
    total.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    with torch.no_grad():
        p = torch.log_softmax(base(replay.windows).logits[:, :-1], -1)
    q = torch.log_softmax(model(replay.windows).logits[:, :-1], -1)
    wanted = F.kl_div(q, p, log_target=True, reduction="sum")
    wanted.backward()
    assert total.item() == pytest.approx(wanted.item(), rel=1e-5) and total.item() > 1
    for name, p in model.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=1e-3, rtol=1e-4), name


def test_the_term_is_what_the_retention_measures():
    base, model = base_model(), other_model()
    replay = replay_of(base)
    n_tokens = replay.windows[:, 1:].numel()
    found = divergence_loss(model, replay.windows, replay.base_of(list(range(9)))).item() / n_tokens
    assert found == pytest.approx(Retention(base, replay.windows).forgetting(model).mean, rel=1e-5)


def test_the_base_itself_has_no_term_and_no_gradient_worth_the_name():
    base = base_model()
    replay = replay_of(base)
    total = divergence_loss(base, replay.windows, replay.base_of(list(range(9))))
    total.backward()
    assert abs(total.item()) < 1e-3 and max(p.grad.abs().max().item() for p in base.parameters()) < 1e-3


def test_kept_predictions_survive_a_step():
    """`divergence_loss` overwrites what it is given."""
    base = base_model()
    replay = replay_of(base)
    before = replay.kept.clone()
    divergence_loss(other_model(), replay.windows, replay.base_of(list(range(9))))
    assert torch.equal(replay.kept, before)


def test_the_bytes_that_are_kept_are_counted():
    base = base_model()
    whole, hidden = (replay_of(base, limit=limit) for limit in LIMITS.values())
    assert whole.n_bytes == 9 * 19 * 97 * 4
    assert hidden.n_bytes == 9 * 19 * 32 * 4 + 97 * 32 * 4


@pytest.mark.parametrize(
    "more, message",
    [
        ({"weight": 1e308}, "at most 1,000,000; found 1e"),
        ({"weight": 0.0}, "weight of the replay must be above 0, and at most 1,000,000; found 0.0"),
        ({"weight": float("nan")}, "found nan"),
        ({"batch": 0}, "needs 1 replay window or more; found 0"),
    ],
)
def test_a_replay_that_no_step_can_have_is_refused(more, message):
    with pytest.raises(TrainingError, match=message):
        replay_of(base_model(), **more)


@pytest.mark.parametrize(
    "windows, found", [(torch.full((2, 8), 97), "97 to 97"), (torch.ones(2, 8), "1 to 1")]
)
def test_replay_windows_that_hold_no_ids_of_the_model_are_refused(windows, found):
    with pytest.raises(TrainingError, match=f"token ids of the model.*{found}"):
        Replay(base_model(), windows)


# --- in the loop -------------------------------------------------------------------


def test_a_replay_holds_the_model_near_its_base_and_is_noted_step_by_step():
    retention = Retention(base_model(), sample_windows(base_model(), 8, 20, seed=9))
    (free, alone), (held, result) = train(replay=None), train(replay={"weight": 3.0})
    assert retention.forgetting(held).mean < 0.8 * retention.forgetting(free).mean
    assert [set(s) for s in result.history.steps] == [{"step", "loss", "rate", "norms", "replay"}] * 6
    assert abs(result.history.steps[0]["replay"]) < 1e-6 < result.history.steps[-1]["replay"]
    assert result.history.steps[0]["loss"] == alone.history.steps[0]["loss"]  # the text's own loss
    assert "replay" not in alone.history.steps[0] and result.proof.ok


def test_the_order_of_the_windows_depends_on_step_and_seed_alone(monkeypatch):
    seen = []
    real = Replay.base_of
    monkeypatch.setattr(Replay, "base_of", lambda self, rows: (seen.append(list(rows)), real(self, rows))[1])
    train(replay={"batch": 3, "seed": 4})
    first = list(seen)
    seen.clear()
    train(replay={"batch": 3, "seed": 4}, seed=11)
    assert seen == first and sorted(sum(first[:3], [])) == list(range(9))
    seen.clear()
    train(replay={"batch": 3, "seed": 5})
    assert seen != first


@pytest.mark.parametrize("kept", LIMITS)
def test_a_resumed_run_is_bit_for_bit_the_same(tmp_path, kept):
    class Stop(Exception):
        pass

    calls = []

    def stop_at_the_third(model):
        calls.append(0)
        if len(calls) == 3:
            raise Stop
        return {"held_out_loss": 1.0}

    replay = {"limit": LIMITS[kept], "batch": 2}
    whole, unbroken = train(replay=replay)
    with pytest.raises(Stop):
        train(replay=replay, folder=tmp_path, evaluate=stop_at_the_third)
    again, resumed = train(replay=replay, folder=tmp_path, evaluate=lambda m: {"held_out_loss": 1.0})
    assert weight_hash(again) == weight_hash(whole)
    assert resumed.history.steps == unbroken.history.steps


@pytest.mark.parametrize("other", [None, {"weight": 2.0}, {"batch": 3}, {"seed": 1}, {"n": 8}])
def test_another_replay_is_another_run(tmp_path, other):
    train(folder=tmp_path)
    with pytest.raises(TrainingError, match="holds another run: it differs in replay"):
        train(folder=tmp_path, replay=other)


def test_a_folder_of_a_run_without_replay_is_not_taken_up_with_one(tmp_path):
    train(folder=tmp_path, replay=None)
    with pytest.raises(TrainingError, match="differs in replay"):
        train(folder=tmp_path)
    train(folder=tmp_path, replay=None)


def test_small_parts_change_nothing_but_memory():
    """In double precision: AdamW turns the rounding of a gradient near zero into a step of the rate's size."""
    whole, parts = (train(double=True, micro_batch=m)[0] for m in (None, 1))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
    assert (
        max((a - b).abs().max() for a, b in zip(whole.parameters(), base_model().parameters(), strict=True))
        > 1e-3
    )


@pytest.mark.parametrize("kept", LIMITS)
def test_it_runs_in_bfloat16_near_the_run_in_float32(kept):
    (_, full), (_, half) = (
        train(replay={"limit": LIMITS[kept]}, rate=1e-3, precision=p) for p in ("float32", "bfloat16")
    )
    for a, b in zip(full.history.steps, half.history.steps, strict=True):
        assert b["replay"] == pytest.approx(a["replay"], abs=0.01) and b["loss"] == pytest.approx(
            a["loss"], abs=0.02
        )
    assert all(p.dtype == torch.float32 for p in half.best.values())


@pytest.mark.parametrize(
    "more, message",
    [
        ({"batch": 1.5}, "1 replay window or more; found 1.5"),
        ({"batch": True}, "1 replay window or more; found True"),
        ({"weight": "1"}, "weight of the replay must be above 0"),
        ({"seed": -1}, "seed"),
        ({"seed": None}, "seed"),
    ],
)
def test_a_replay_setting_of_another_form_is_refused(more, message):
    base = base_model()
    with pytest.raises((TrainingError, ModelError), match=message):
        replay_of(base, **more)
    with pytest.raises(TrainingError, match="must be a tensor, .n, length.; found list"):
        Replay(base, TEXT.tolist())


def test_the_replay_of_another_vocabulary_is_refused_before_training():
    base = build_model(tiny.config(vocab_size=50))
    replay = Replay(base, torch.randint(50, (4, 12)))
    settings = TrainSettings(n_steps=1, rate=1e-3, batch=2)
    with pytest.raises(TrainingError, match="vocabulary of 50, and this model one of 97"):
        fit(base_model(), MAIN, TEXT, settings, replay=replay, progress=False)
    with pytest.raises(TrainingError, match="replay is a Replay, or None; found 'x'"):
        fit(base_model(), MAIN, TEXT, settings, replay="x", progress=False)


@pytest.mark.parametrize("asked", [0, 1, None, "zzz"])
def test_a_cache_is_on_or_off_or_auto(asked):
    with pytest.raises(TrainingError, match="cache_frozen is True, False or 'auto'"):
        fit(base_model(), MAIN, TEXT, TrainSettings(n_steps=1, rate=1e-3), cache_frozen=asked, progress=False)
