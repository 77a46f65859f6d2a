"""Checks for the two exercises of ``05_loss_and_forgetting`` that ask for a function: a test loss, and a KL."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.functional import kl_div, log_softmax

from helpers.cases import judge_function
from helpers.checks import Reply, exercise

NAN = math.nan

# --- 05e: which test loss may be reported? -----------------------------------------


def _run(*rows: tuple[float, float, float]) -> list[dict]:
    return [{"step": 20 * i, "train": train, "dev": dev, "test": test} for i, (train, dev, test) in enumerate(rows)]


RUNS = (
    [_run((3.6, 3.50, 3.52), (3.3, 3.41, 3.46), (3.1, 3.38, 3.47), (2.9, 3.44, 3.45))],
    [_run((3.6, 3.50, 3.52), (3.3, 3.40, 3.44), (3.35, 3.43, 3.41)),
     _run((3.6, 3.50, 3.52), (3.2, 3.42, 3.49), (3.0, 3.39, 3.50)),
     _run((3.6, 3.50, 3.52), (3.4, 3.45, 3.40), (3.2, 3.41, 3.48))],
    [_run((3.6, 3.50, 3.52), (3.3, 3.41, 3.45), (NAN, NAN, NAN)), _run((3.6, 3.50, 3.52), (NAN, NAN, NAN))],
)


def reported(runs: list[list[dict]]) -> float:
    """Mean over runs of the test loss at each run's lowest dev loss."""
    return sum(_best(run, "dev")["test"] for run in runs) / len(runs)


def _best(run: list[dict], key: str) -> dict:
    return min((e for e in run if not math.isnan(e[key])), key=lambda e: e[key])


def _mean(choose) -> Any:
    return lambda runs: sum(choose(run) for run in runs) / len(runs)


def _nan_wins(run: list[dict]) -> float:
    """As numpy's argmin does: NaN is the smallest."""
    return next((e["test"] for e in run if math.isnan(e["dev"])), _best(run, "dev")["test"])


@exercise("05e")
def test_loss_to_report(answer: Any) -> Reply:
    """A function from runs (lists of evaluations with step, train, dev, test) to one number."""
    on_test = ("you chose the point with the lowest *test* loss. Then the test text took part in the choice, and its "
               "loss is too good. Choose on dev, and read test once.")
    nan = "a run that diverged has NaN, and NaN won. Comparisons with NaN are always False: leave such points out."
    finite = [[[e for e in run if not math.isnan(e["dev"])] for run in runs] for runs in RUNS[:2]]
    reply = judge_function(answer, [(runs,) for runs in finite], reported, {
        _mean(lambda run: _best(run, "test")["test"]): on_test,
        lambda runs: min(e["test"] for run in runs for e in run): on_test,
        _mean(lambda run: run[-1]["test"]): "you took the last point of each run. After its best dev loss a run "
                                            "over-fits: read test where dev is lowest.",
        _mean(lambda run: _best(run, "train")["test"]): "you chose by the training loss. It falls on while the model "
                                                        "learns the text by heart: choose on dev.",
        lambda runs: min((_best(run, "dev") for run in runs), key=lambda e: e["dev"])["test"]:
            "you report the best run alone. Readers who train once get an average run: take the mean over all runs.",
        lambda runs: min(_best(run, "dev")["test"] for run in runs):
            "you report the best run alone. Readers who train once get an average run: take the mean over all runs.",
        _mean(lambda run: _best(run, "dev")["dev"]): "you return the dev loss. It was chosen to be low, so it is too "
                                                     "good: return the test loss at that point.",
        _mean(lambda run: sum(e["test"] for e in run) / len(run)): "you took the mean over all points of a run. A run "
                                                                   "is reported at one point: where dev is lowest.",
        lambda runs: sum(_best(run, "dev")["test"] for run in runs): "you added the runs up. Divide by their number.",
    }, "Chosen on dev, read on test, averaged over all runs, with none left out.")
    return _judge_diverged(answer, reply, nan) if reply.ok else reply


def _judge_diverged(answer: Any, reply: Reply, nan: str) -> Reply:
    return judge_function(answer, [(RUNS[2],)], reported, {
        _mean(_nan_wins): nan,
        lambda runs: _best(runs[0], "dev")["test"]: "you dropped the run that diverged. It counts too, at its best dev "
                                                    "loss: leave out its NaN points, not the run.",
    }, reply.message)


# --- 05f: forgetting from logits ---------------------------------------------------


def _logits() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Base and tuned logits, always the same: (windows, tokens, vocabulary)."""
    dice = torch.Generator().manual_seed(5)
    base = 2 * torch.randn(3, 4, 6, generator=dice)
    tuned = base + torch.randn(3, 4, 6, generator=dice)
    return [(base, tuned), (base, base.clone()), (tuned[:1], base[:1])]


def forgetting(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    """Mean KL(base || tuned) in nats a token, from logits of (windows, tokens, vocabulary)."""
    p, q = log_softmax(base, -1), log_softmax(tuned, -1)
    return (p.exp() * (p - q)).sum(-1).mean()


def _over_time(base, tuned):
    p, q = log_softmax(base, 1), log_softmax(tuned, 1)
    return (p.exp() * (p - q)).sum(1).mean()


def _cross_entropy(base, tuned):
    return -(log_softmax(base, -1).exp() * log_softmax(tuned, -1)).sum(-1).mean()


@exercise("05f")
def forgetting_from_logits(answer: Any) -> Reply:
    """A function from the logits of the base and of the tuned model to nats a token."""
    reply = judge_function(answer, _logits(), forgetting, {
        lambda b, t: forgetting(t, b): "this is KL(tuned || base). Asked is what became of the *base's* likely tokens: "
                                       "weigh by the base's probabilities. (kl_div takes the tuned model's log first.)",
        lambda b, t: -forgetting(b, t): "the sign is turned round: ln p - ln q, with p the base's. A KL is never "
                                        "negative.",
        lambda b, t: forgetting(b, t) / b.size(-1):
            "you took the mean over the vocabulary too. A token's KL is a *sum* over the vocabulary; the mean is over "
            "tokens. (kl_div's reduction='mean' does this.)",
        lambda b, t: forgetting(b, t) * b[..., 0].numel(): "you added up all tokens. Asked is a mean: nats a token.",
        lambda b, t: forgetting(b, t) * b.size(1):
            "you divided by the windows, not by the tokens. (kl_div's reduction='batchmean' divides by the first "
            "size alone.)",
        lambda b, t: forgetting(b, t) / math.log(2): "this is in bits. For nats take the natural logarithm.",
        _over_time: "your softmax runs over the tokens (dim 1). The vocabulary is the last dimension: dim=-1.",
        _cross_entropy: "this is the cross-entropy: it is not 0 for two equal models. Subtract the base's own entropy, "
                        "or use ln p - ln q.",
        lambda b, t: (b - t).square().mean(): "you compared logits. Adding a constant to all logits changes no "
                                              "probability: compare distributions.",
        lambda b, t: kl_div(t, b, reduction="batchmean"): "kl_div wants log-probabilities first and probabilities "
                                                          "second, not logits.",
    }, "KL(base || tuned), summed over the vocabulary, averaged over tokens.", within=1e-4)
    return _judge_sure(answer, reply) if reply.ok else reply


def _judge_sure(answer: Any, reply: Reply) -> Reply:
    """A base that is sure of itself: a probability below the smallest float32 must not give NaN."""
    sure = torch.tensor([[[400.0, 0.0, -400.0]]]), torch.tensor([[[399.0, 0.0, -400.0]]])
    return judge_function(answer, [sure], forgetting, {
        lambda b, t: NAN: "for logits as far apart as 400 and -400 your function gives NaN: softmax is exactly 0 "
                          "there, and 0 times ln 0 is NaN. Take log_softmax, not the logarithm of softmax.",
        lambda b, t: math.inf: "for logits as far apart as 400 and -400 your function gives infinity: softmax is "
                               "exactly 0 there. Take log_softmax, not the logarithm of softmax.",
    }, reply.message, within=1e-4)
