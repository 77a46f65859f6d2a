"""Checks for the exercises of ``06_keep_what_it_knew``: budgets, shares and replay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import log_softmax

from helpers.lessons.cases import judge_function
from helpers.lessons.checks import Reply, exercise, judge_number, right, value_of, wrong
from helpers.lessons.reading import named, number

Tensors = dict[str, torch.Tensor]


@exercise("06a")
def gain_at_a_budget(answer: Any) -> Reply:
    return judge_number(
        answer,
        0.105,
        "The budget ends a quarter of the way from step 20 to step 30.",
        {
            0.10: "you stopped at the last point that was measured within the budget. Between two points the path "
            "goes on: 0.07 lies between 0.06 and 0.10.",
            0.12: "0.12 is the best gain of the path, but there it had forgotten 0.10: more than the budget.",
            0.09: "0.09 is the gain at the end, and there the run had forgotten more than twice the budget.",
            0.11: "you went halfway. 0.07 is a quarter of the way from 0.06 to 0.10.",
            0.115: "you went three quarters of the way. Begin at the point with the smaller forgetting, 0.06.",
            0.06: "0.06 is the gain at step 10, and the forgetting at step 20. Asked is a gain, at a forgetting of 0.07.",
            22.5: "this is the step. Asked is the gain there.",
            0.03: "you took a forgetting from a gain. Asked is the gain alone, where forgetting is 0.07.",
            0.10
            * 0.07
            / 0.06: "your line starts at zero. Join the two neighbouring points: from a gain of 0.10 to 0.12.",
            0.12
            * 0.07
            / 0.10: "your line goes from zero to the point at step 30. Join the two neighbouring points: from a gain of "
            "0.10 to 0.12.",
            0.07: "0.07 is the budget, a forgetting. The gain that it buys is asked for.",
        },
        within=5e-4,
        otherwise="Find the two neighbouring points between which forgetting passes 0.07.",
    )


# --- 06b: chosen on dev, reported on test ------------------------------------------


def _points(*rows: tuple[float, float, float]) -> list[dict]:
    return [{"alpha": alpha, "dev": dev, "test": test} for alpha, dev, test in rows]


ROWS = (
    _points(
        (0.0, 3.50, 3.60), (0.25, 3.43, 3.54), (0.5, 3.39, 3.51), (0.75, 3.385, 3.50), (1.0, 3.392, 3.55)
    ),
    _points((0.0, 3.50, 3.60), (0.25, 3.41, 3.57), (0.5, 3.38, 3.54), (0.75, 3.372, 3.52), (1.0, 3.37, 3.56)),
    _points((0.0, 3.20, 3.30), (0.25, 3.17, 3.24), (0.5, 3.15, 3.28), (0.75, 3.12, 3.31), (1.0, 3.16, 3.35)),
    _points((0.0, 3.20, 3.30), (0.5, 3.22, 3.29), (1.0, 3.25, 3.33)),
)
KEPT = 0.9  # of the best dev gain


def chosen_on_dev(points: list[dict]) -> tuple[float, float]:
    """The smallest share that keeps nine tenths of the best dev gain, and the test gain there."""
    return _report(points, _smallest(points, "dev"))


def _smallest(points: list[dict], key: str) -> dict:
    base = points[0][key]
    best = base - min(p[key] for p in points)
    return next(p for p in points if base - p[key] >= KEPT * best)


def _report(points: list[dict], point: dict, key: str = "test") -> tuple[float, float]:
    return point["alpha"], points[0][key] - point[key]


def _of_the_tuned_gain(points: list[dict]) -> tuple[float, float]:
    base = points[0]["dev"]
    wanted = KEPT * (base - points[-1]["dev"])
    return _report(points, next(p for p in points if base - p["dev"] >= wanted))


def _largest(points: list[dict]) -> tuple[float, float]:
    return _report(points, _good(points)[-1])


def _good(points: list[dict]) -> list[dict]:
    """The points that keep nine tenths of the best dev gain."""
    base = points[0]["dev"]
    best = base - min(p["dev"] for p in points)
    return [p for p in points if base - p["dev"] >= KEPT * best]


@exercise("06b")
def share_chosen_on_dev(answer: Any) -> Reply:
    """A function from points (alpha, dev loss, test loss) to the share and its test gain."""
    on_test = (
        "you chose the share with the test text. Then the test gain is too good, and nothing is left to check it "
        "with. Choose on dev, and read test once."
    )
    return judge_function(
        answer,
        [(points,) for points in ROWS],
        chosen_on_dev,
        {
            lambda p: _report(p, _smallest(p, "test")): on_test,
            lambda p: _report(p, min(p, key=lambda e: e["test"])): on_test,
            lambda p: _report(p, min(_good(p), key=lambda e: e["test"])): on_test,
            lambda p: _report(
                p, min(p, key=lambda e: e["dev"])
            ): "you took the share of the lowest dev loss. A "
            "smaller one that keeps 90% of the best gain forgets less: that one is asked for.",
            lambda p: _report(
                p, p[0]
            ): "you always keep the base. Take 90% of the best *gain*, base minus loss: 90% of "
            "a *loss* is a limit that every point keeps.",
            _largest: "you took the largest share that keeps 90%. The smallest is nearer to the base, and forgets less.",
            _of_the_tuned_gain: "you took 90% of the gain at the last share, the tuned model. The rule says: of the "
            "best gain, which can stand at a smaller share.",
            lambda p: _report(
                p, _smallest(p, "dev"), "dev"
            ): "the share is right, but you report the dev gain. It was "
            "chosen to be high, so report the gain on the test text.",
            lambda p: (
                _smallest(p, "dev")["alpha"],
                _smallest(p, "dev")["test"],
            ): "the share is right, but you "
            "report the test loss. A gain is the base's loss (share 0) minus the loss.",
            lambda p: (
                _report(p, _smallest(p, "dev"))[0],
                -_report(p, _smallest(p, "dev"))[1],
            ): "the share is right, and the gain has the wrong sign: base minus rewound.",
            lambda p: _smallest(p, "dev")[
                "alpha"
            ]: "only the share came back. Return two numbers: the share, and the test gain there.",
            lambda p: _report(
                p, p[-1]
            ): "you kept the tuned model, share 1. A smaller share can keep most of the gain.",
        },
        "Chosen on dev, read once on test, and the base itself where nothing was gained.",
    )


# --- 06c and 06d: between two models -----------------------------------------------


def _models() -> tuple[Tensors, Tensors]:
    """Base and tuned: weights between which the plain formula does not come back to the tuned ones."""
    dice = torch.Generator().manual_seed(6)
    names = ("h.0.attn.weight", "h.0.mlp.weight", "h.1.attn.weight", "wte.weight")
    base = {name: 30 * torch.randn(5, 4, generator=dice) for name in names}
    return base, {name: torch.randn(5, 4, generator=dice) for name in names}


def _copy(weights: Tensors) -> Tensors:
    return {name: value.clone() for name, value in weights.items()}


def _tensors(value: Any, names: Mapping) -> Tensors:
    """What a reader's function returned: every tensor by its name.

    Raises:
        ValueError: it is no such dict.
    """
    if not isinstance(value, dict):
        raise ValueError(f"a dict from name to tensor is asked for, found {named(value)}")
    odd = [name for name in names if name in value and not isinstance(value[name], torch.Tensor)]
    if odd:
        raise ValueError(f"'{odd[0]}' holds {named(value[odd[0]])}, and no tensor")
    return value


def _all(found: Tensors, wanted: Tensors, exactly: bool = False) -> bool:
    return all(
        found[n].shape == w.shape
        and (torch.equal(found[n], w) if exactly else torch.allclose(found[n].float(), w, atol=1e-5))
        for n, w in wanted.items()
    )


def _called(answer: Any, *more: Any) -> tuple[Tensors, Reply | None, bool]:
    """What the function gives for base, tuned and more; a reply where it changed them, or left tensors out.

    The last one says whether it handed back one of the two dicts themselves.
    """
    base, tuned = _models()
    given = _copy(base), _copy(tuned)
    found = _tensors(value_of(answer, *given, *more, hints=SHARE_HINTS), base)
    if not (_all(given[0], base, True) and _all(given[1], tuned, True)):
        changed = (
            "your function changed the weights that it was given. Then the base is lost, and a second share starts "
            "from the wrong place. Make new tensors."
        )
        return found, wrong(changed), False
    missing = [name for name in base if name not in found]
    if missing:
        return (
            found,
            wrong(f"'{missing[0]}' is missing in what you return. A model needs all its tensors."),
            False,
        )
    return found, None, any(found is one for one in given)


NOT_NEW = (
    "the numbers are right, but your function hands back the very dict that it was given. Then a change in one is a "
    "change in the other: return a new dict."
)


@exercise("06c")
def go_back(answer: Any) -> Reply:
    """A function (base, tuned, alpha) of dicts of tensors."""
    base, tuned = _models()
    by_share, given_back = {}, []
    for alpha in (0.5, 0.25, 0.0, 1.0):
        by_share[alpha], fault, same = _called(answer, alpha)
        given_back.append(same)
        if fault:
            return fault
    half = {name: (base[name] + tuned[name]) / 2 for name in base}
    if _all(by_share[0.0], tuned) and _all(by_share[1.0], base):
        return wrong("it is turned round: 1 must give the tuned model, and 0 the base.")
    if _all(by_share[0.5], {name: 0.5 * (tuned[name] - base[name]) for name in base}):
        return wrong("that is the change alone. Add it to the base.")
    if _all(by_share[0.5], {name: tuned[name] + 0.5 * (tuned[name] - base[name]) for name in base}):
        return wrong("you went on from the tuned model, away from the base. Start at the base.")
    if _all(by_share[0.5], {name: base[name] + 0.5 * tuned[name] for name in base}):
        return wrong("you added a part of the tuned weights. Add a part of the *change*, tuned - base.")
    quarter = {name: base[name] + 0.25 * (tuned[name] - base[name]) for name in base}
    if not (_all(by_share[0.5], half) and _all(by_share[0.25], quarter)):
        return wrong("halfway is not halfway: at 0.5 each weight must be the mean of base and tuned.")
    for alpha, model, who in ((1.0, tuned, "tuned model"), (0.0, base, "base")):
        if not _all(by_share[alpha], model, exactly=True):
            return wrong(
                f"at {alpha:g} it is nearly the {who}, and not bit for bit. A difference that is taken and added "
                "again is rounded twice, and what was rounded away does not come back. Let the ends be the tensors "
                "themselves, or use torch.lerp."
            )
    if any(given_back):
        return wrong(NOT_NEW)
    return right("bit for bit at both ends, and the mean at one half. A proof can now ask for equality.")


ROLES = {
    "h.0.attn.weight": "attention",
    "h.0.mlp.weight": "mlp",
    "h.1.attn.weight": "attention",
    "wte.weight": "embeddings",
}
SHARES = {"attention": 0.25, "embeddings": 0.0}
SHARE_HINTS = {
    "KeyError: 'mlp'": "The role 'mlp' has no share here. What has none stays tuned: shares.get(role, 1)."
}


def in_roles(base: Tensors, tuned: Tensors, roles: Mapping, shares: Mapping, absent: float = 1.0) -> Tensors:
    """Each tensor at the share of its role; a role without a share stays tuned."""
    return {n: torch.lerp(base[n], tuned[n], float(shares.get(roles[n], absent))) for n in base}


@exercise("06d")
def go_back_in_roles(answer: Any) -> Reply:
    """A function (base, tuned, roles, shares) of dicts."""
    base, tuned = _models()
    found, fault, given_back = _called(answer, dict(ROLES), dict(SHARES))
    if fault:
        left_out = "is missing" in fault.message
        more = " What has no share stays tuned: return it as it is." if left_out else ""
        return wrong(fault.message + more)
    mistakes = {
        "a role without a share went back to the base. What is not named must stay tuned: share 1.": in_roles(
            base, tuned, ROLES, SHARES, absent=0.0
        ),
        "the shares are turned round: 0 is the base, and 1 the tuned model.": in_roles(
            tuned, base, ROLES, SHARES, absent=0.0
        ),
        "the shares are turned round: a share says how much of its change a role keeps. What has none keeps all.": (
            in_roles(tuned, base, ROLES, SHARES)
        ),
        "only one tensor of attention went back. A role has many tensors: this one has two.": {
            **in_roles(base, tuned, ROLES, SHARES),
            "h.1.attn.weight": tuned["h.1.attn.weight"],
        },
        "a share of 0 was taken for a missing one. 0 means: all the way back. Ask whether the role is in shares, "
        "not whether its share is true.": in_roles(base, tuned, ROLES, {"attention": 0.25}),
        "only the last share counts: each round of your loop writes all tensors again. Write those of the role alone.": (
            in_roles(base, tuned, ROLES, {"embeddings": 0.0})
        ),
        "nothing went back: all is still tuned. shares is asked by role, and roles[name] is the role of a tensor; a "
        "tensor's name is neither.": tuned,
    }
    if _all(found, in_roles(base, tuned, ROLES, SHARES)):
        return (
            wrong(NOT_NEW)
            if given_back
            else right("attention a quarter of the way, embeddings the base's, and the MLP untouched.")
        )
    for reason, weights in mistakes.items():
        if _all(found, weights):
            return wrong(reason)
    if _at_one_share(found, base, tuned):
        return wrong("every tensor went back by one and the same share. Look up each tensor's role first.")
    off = next(n for n, w in in_roles(base, tuned, ROLES, SHARES).items() if not _all(found, {n: w}))
    return wrong(f"'{off}' ({ROLES[off]}) is not where its share {SHARES.get(ROLES[off], 1):g} puts it.")


def _at_one_share(found: Tensors, base: Tensors, tuned: Tensors) -> bool:
    """Whether all tensors stand at the same share, which is neither the base nor the tuned model."""
    if any(found[n].shape != w.shape for n, w in base.items()):
        return False
    shares = torch.cat([((found[n] - w) / (tuned[n] - w)).flatten() for n, w in base.items()])
    return 0.01 < shares[0] < 0.99 and torch.allclose(shares, shares[0], atol=1e-3)


# --- 06e: the replay term ----------------------------------------------------------


def _logits() -> tuple[torch.Tensor, torch.Tensor]:
    """Base and model on replay windows: (windows, tokens, vocabulary)."""
    dice = torch.Generator().manual_seed(16)
    base = 2 * torch.randn(2, 3, 5, generator=dice)
    return base, base + torch.randn(2, 3, 5, generator=dice)


def kl(base: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """Mean KL(base || model) over tokens, in nats per token."""
    log_p, log_q = log_softmax(base, -1), log_softmax(model, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def _over_tokens(base: torch.Tensor, model: torch.Tensor) -> float:
    log_p, log_q = log_softmax(base, 1), log_softmax(model, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean().item()


def _replay_mistakes(text: float, base: torch.Tensor, model: torch.Tensor, weight: float) -> dict[float, str]:
    """Value of the loss to what probably happened."""
    whole, n_tokens = kl(base, model).item(), base[..., 0].numel()
    return {
        text
        + weight
        * kl(model, base).item(): "this is KL(model || base). What the *base* finds likely must stay "
        "likely: weigh by the base's probabilities.",
        text
        + weight
        * _over_tokens(base, model): "your softmax runs over the tokens (dim 1). The vocabulary is the "
        "last dimension: dim=-1.",
        text
        - weight
        * (log_softmax(base, -1).exp() * log_softmax(model, -1)).sum(-1).mean().item(): "this adds the "
        "cross-entropy: it is not 0 where the model equals the base. Use ln p - ln q.",
        text + whole: "the weight is missing: text loss + weight * KL.",
        weight
        * whole: "the loss on the text is missing. Replay alone holds the model still: it would learn nothing.",
        text
        - weight
        * whole: "the sign is turned round. A loss is made small, so the distance to the base is added.",
        text
        + weight
        * (base - model)
        .square()
        .mean()
        .item(): "you compared logits. Adding a constant to all logits changes no "
        "probability: compare distributions, with the KL.",
        text
        + weight
        * whole
        * n_tokens: "you added up all tokens. Take their mean, as the loss on the text does.",
        text
        + weight
        * whole
        / base.size(-1): "you took the mean over the vocabulary too. A token's KL is a sum over "
        "the vocabulary; the mean is over tokens.",
        text + weight * whole * base.size(1): "you divided by the windows, not by the tokens.",
        weight * (text + whole): "the weight stands before both. It belongs to the KL alone.",
        (1 - weight) * text
        + weight * whole: "you shared the weight out. The loss on the text keeps its full size here.",
    }


@exercise("06e")
def replay_loss(answer: Any) -> Reply:
    """A function (text loss, base's logits, model's logits, weight): one number with a gradient."""
    for weight in (0.3, 2.0):
        fault = _judge_replay(answer, weight)
        if fault:
            return fault
    return right("the base weighs, the model learns, and the base itself gets no gradient.")


def _judge_replay(answer: Any, weight: float) -> Reply | None:
    (base, model), text = _logits(), torch.tensor(3.4, requires_grad=True)
    base.requires_grad_(True)
    model.requires_grad_(True)
    value = value_of(answer, text, base, model, weight)
    found, wanted = number(value), text.item() + weight * kl(base, model).item()
    if not math.isclose(found, wanted, rel_tol=1e-4):
        for mistake, reason in _replay_mistakes(text.item(), base, model, weight).items():
            if math.isclose(found, mistake, rel_tol=1e-4):
                return wrong(reason)
        return wrong(f"for a weight of {weight:g} your loss is {found:.4g}, and {wanted:.4g} is right.")
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return wrong(
            "the value is right, but it has no gradient. Leave out .item(), float() and torch.no_grad()."
        )
    value.sum().backward()
    if model.grad is None or not model.grad.any():
        return wrong(
            "the model's logits got no gradient: the KL would teach it nothing. Detach the base's alone."
        )
    if text.grad is None:
        return wrong("the loss on the text got no gradient: do not detach it.")
    if base.grad is not None and base.grad.any():
        return wrong(
            "the base's logits got a gradient. The base is a fixed goal: without detach() it would be pulled towards "
            "the model."
        )
    return None
