"""Notebook 04's checks: right answers in every form, and a name for each usual mistake."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.lessons.checks import reply_to
from support.said import assert_wrong


@pytest.mark.parametrize("name", ["04c", "04d", "04a", "04b", "04e"])
def test_an_untouched_stub_is_not_attempted(name):
    reply = reply_to(name, ...)
    assert reply.ok is None and "not attempted yet" in reply.message


# --- 04c ---------------------------------------------------------------------------


def finished(losses):
    return {rate: loss for rate, loss in losses.items() if not math.isnan(loss)}


def chosen(losses):
    best = min(finished(losses), key=losses.get)
    return "wider" if best in (min(losses), max(losses)) else best


def choose(table):
    return {plan: chosen(losses) for plan, losses in table.items()}


def in_form(form):
    return lambda table: {plan: v if v == "wider" else form(v) for plan, v in choose(table).items()}


@pytest.mark.parametrize(
    "form",
    [float, str, np.float64, lambda v: torch.tensor(v, dtype=torch.float64), lambda v: [v], lambda v: (v,)],
    ids=["float", "text", "numpy", "tensor", "list", "tuple"],
)
def test_the_right_choice_passes_in_every_form(form):
    assert reply_to("04c", in_form(form)).ok is True


def test_the_word_wider_passes_in_capitals():
    assert reply_to(
        "04c", lambda table: {p: "Wider" if v == "wider" else v for p, v in choose(table).items()}
    ).ok


def one_rate_for_both(table):
    rates = sorted({rate for losses in table.values() for rate in losses})
    best = min(rates, key=lambda r: sum(losses.get(r, 9.0) for losses in table.values()))
    return dict.fromkeys(table, best)


def takes_the_edge(table):
    return {plan: min(finished(losses), key=losses.get) for plan, losses in table.items()}


def lets_nan_win(table):
    best = {plan: min(losses, key=losses.get) for plan, losses in table.items()}
    return {p: b if math.isnan(table[p][b]) else chosen(table[p]) for p, b in best.items()}


def forgets_the_diverged_neighbour(table):
    return {plan: chosen(finished(losses)) for plan, losses in table.items()}


def trusts_the_order(table):
    def of_plan(losses):
        best = min(finished(losses), key=losses.get)
        return "wider" if best in (min(losses), list(losses)[-1]) else best

    return {
        plan: of_plan(losses) if not any(map(math.isnan, losses.values())) else chosen(losses)
        for plan, losses in table.items()
    }


@pytest.mark.parametrize(
    ("mistake", "what"),
    [
        (one_rate_for_both, "both plans one rate"),
        (takes_the_edge, "at the edge of the grid"),
        (
            lambda table: {p: sorted(losses)[1] for p, losses in table.items()},
            "The lowest loss is that of 0.001",
        ),
        (lambda table: {p: max(losses, key=losses.get) for p, losses in table.items()}, "the highest loss"),
        (
            lambda table: {p: sorted(losses)[p == "main"] for p, losses in table.items()},
            "in the middle of its grid",
        ),
        (lets_nan_win, "a run that diverged"),
        (forgets_the_diverged_neighbour, "a neighbour that was tried"),
        (trusts_the_order, "trusts the order"),
        (lambda table: None, "should return a dict"),
        (lambda table: {"main": 3e-4}, "should return a dict"),
        (lambda table: table["nowhere"], "stopped with KeyError"),
    ],
)
def test_a_usual_mistake_with_rates_is_named(mistake, what):
    assert_wrong("04c", mistake, what)


@pytest.mark.parametrize("answer", [3e-4, {"main": 3e-4, "full": 1e-4}, "wider"])
def test_a_result_in_place_of_the_function_is_explained(answer):
    assert_wrong("04c", answer, "the function itself")


# --- 04d ---------------------------------------------------------------------------


def save(model, optimizer, step):
    return copy.deepcopy(
        {
            "weights": model.state_dict(),
            "moments": optimizer.state_dict(),
            "dice": torch.get_rng_state(),
            "step": step,
        }
    )


def load(saved, model, optimizer):
    model.load_state_dict(saved["weights"])
    optimizer.load_state_dict(saved["moments"])
    torch.set_rng_state(saved["dice"])
    return saved["step"]


def load_without(*parts, step=None):
    def load_some(saved, model, optimizer):
        if "weights" not in parts:
            model.load_state_dict(saved["weights"])
        if "moments" not in parts:
            optimizer.load_state_dict(saved["moments"])
        if "dice" not in parts:
            torch.set_rng_state(saved["dice"])
        return step if "step" in parts else saved["step"]

    return load_some


def save_uncopied(*parts):
    def save_some(model, optimizer, step):
        living = {"weights": model.state_dict(), "moments": optimizer.state_dict()}
        return save(model, optimizer, step) | {part: living[part] for part in parts}

    return save_some


@pytest.mark.parametrize(
    "answer",
    [
        (save, load),
        [save, load],
        {"save": save, "load": load},
        (lambda *run: {**save(*run), "step": torch.tensor(run[2])}, load),
        (lambda *run: {**save(*run), "step": [run[2]]}, load),
    ],
    ids=["tuple", "list", "dict", "step as tensor", "step as list"],
)
def test_a_full_save_passes_in_every_form(answer):
    assert reply_to("04d", answer).ok is True


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ((save, load_without("weights")), "the weights are not those"),
        ((save, load_without("moments")), "moments are not"),
        ((save, load_without("moments", "dice", "step")), "moments are not"),
        ((save, load_without("dice")), "the random state is not"),
        ((save, load_without("step")), "returns nothing"),
        ((save, load_without("step", step=0)), "sees its first batches twice"),
        ((save, load_without("step", step=4)), "saved after step 3"),
        ((save_uncopied("weights"), load), "weights that you saved went on changing"),
        ((save_uncopied("moments"), load), "moments that you saved went on changing"),
        ((save, lambda saved, model, optimizer: saved["nothing"]), "stopped with KeyError"),
    ],
)
def test_what_a_resumed_run_lacks_is_named(answer, what):
    assert_wrong("04d", answer, what)


def test_a_load_that_changes_something_else_is_found():
    def load_and_tamper(saved, model, optimizer):
        step = load(saved, model, optimizer)
        optimizer.param_groups[0]["lr"] = 0.01
        return step

    assert_wrong("04d", (save, load_and_tamper), "the end differs")


@pytest.mark.parametrize("answer", [save, (save,), (save, 3), "weights", {"save": save}])
def test_anything_but_two_functions_is_explained(answer):
    assert_wrong("04d", answer, "two functions are asked for")


def test_the_check_leaves_the_readers_random_state_alone():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    reply_to("04d", (save, load))
    assert torch.equal(before, torch.get_rng_state())


# --- 04a ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", [3.24, "3.24", torch.tensor(3.24), [3.24], (3.24,), np.float32(3.24), 1620 / 500]
)
def test_the_mean_over_tokens_passes_in_every_form(answer):
    assert reply_to("04a", answer).ok is True


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (4, "the mean of the three means"),
        (torch.tensor(4), "the mean of the three means"),
        (1620, "forgot to divide"),
        (540, "by three micro-batches"),
        (12, "added up the three means"),
        (0.024, "turn each mean back"),
        (3.5, "is not it"),
        ([3.0, 4.0, 5.0], "one number is asked for"),
    ],
)
def test_a_usual_mistake_with_means_is_named(answer, what):
    assert_wrong("04a", answer, what)


# --- 04b ---------------------------------------------------------------------------


def step(model, optimizer, parts, loss_of):
    n_tokens, nats = sum(map(len, parts)), 0.0
    optimizer.zero_grad(set_to_none=True)
    for part in parts:
        total = loss_of(model, part)
        (total / n_tokens).backward()
        nats += total.item()
    optimizer.step()
    return nats / n_tokens


@pytest.mark.parametrize("form", [float, str, torch.tensor, np.float64, lambda v: [v]])
def test_a_step_in_parts_is_right_whatever_form_the_loss_has(form):
    assert reply_to("04b", lambda *run: form(step(*run))).ok is True


def step_that(*faults):
    def faulty(model, optimizer, parts, loss_of):
        n_tokens, nats = sum(map(len, parts)), 0.0
        for part in parts:
            if "clears each part" in faults:
                optimizer.zero_grad()
            total = loss_of(model, part)
            share = 1 / n_tokens
            share = 1 / len(part) / len(parts) if "mean of means" in faults else share
            share = 1 / len(part) if "sum of means" in faults else share
            share = 1 if "sums" in faults else share
            if "no backward" not in faults:
                (total * share).backward()
            nats += total.item()
            if "steps often" in faults:
                optimizer.step()
                optimizer.zero_grad()
        if "steps often" not in faults:
            optimizer.step()
        if not {"never clears", "clears each part"} & set(faults):
            optimizer.zero_grad()
        if "no loss" not in faults:
            return nats if "nats" in faults else nats / n_tokens

    return faulty


def step_at_once(model, optimizer, parts, loss_of):
    totals = [loss_of(model, part) for part in parts]
    loss = sum(totals) / sum(map(len, parts))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize(
    ("mistake", "what"),
    [
        (step_that("mean of means"), "the mean of their means"),
        (step_that("sum of means"), "added up the means"),
        (step_that("sums"), "grows with the number of tokens"),
        (step_that("never clears"), "still in .grad"),
        (step_that("clears each part"), "only the last part"),
        (step_that("steps often"), "several small steps"),
        (step_that("no backward"), "no weight has moved"),
        (step_that("no loss"), "returns nothing"),
        (step_that("nats"), "the loss that you return is not"),
        (step_that("sums", "never clears"), "somewhere else"),
        (step_at_once, "before calling backward on the one before"),
        (lambda *run: run[9], "stopped with IndexError"),
        (3.2, "a function is asked for"),
    ],
)
def test_a_usual_mistake_in_a_step_is_named(mistake, what):
    assert_wrong("04b", mistake, what)


# --- 04e ---------------------------------------------------------------------------


def ratio_of(pairs, quantile=None, ddof=1):
    logs = np.array([math.log(main / full) for main, full in pairs])
    half = (quantile or stats.t.ppf(0.975, len(logs) - 1)) * logs.std(ddof=ddof) / math.sqrt(len(logs))
    return tuple(math.exp(x) for x in (logs.mean(), logs.mean() - half, logs.mean() + half))


@pytest.mark.parametrize("form", [tuple, list, np.array, torch.tensor, lambda v: [str(x) for x in v]])
def test_the_ratio_of_times_is_right_in_every_form(form):
    assert reply_to("04e", lambda pairs: form(ratio_of(pairs))).ok is True


def with_ratio(ratio):
    return lambda pairs: (ratio(np.array(pairs)), *ratio_of(pairs)[1:])


def with_bounds(bounds):
    return lambda pairs: (ratio_of(pairs)[0], *bounds(np.array(pairs)))


def plus_minus_half(pairs):
    ratio, low, high = ratio_of(pairs)
    return ratio - math.log(high / ratio), ratio + math.log(high / ratio)


def without_root(pairs):
    logs = np.log(pairs[:, 0] / pairs[:, 1])
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1)
    return math.exp(logs.mean() - half), math.exp(logs.mean() + half)


def unpaired(pairs):
    logs = np.log(pairs)
    half = stats.t.ppf(0.975, len(logs) - 1) * math.sqrt(sum(logs.var(0, ddof=1)) / len(logs))
    middle = (logs[:, 0] - logs[:, 1]).mean()
    return math.exp(middle - half), math.exp(middle + half)


@pytest.mark.parametrize(
    ("mistake", "what"),
    [
        (lambda pairs: ratio_of([pair[::-1] for pair in pairs]), "full by main"),
        (with_ratio(lambda p: p[:, 0].mean() / p[:, 1].mean()), "two mean times"),
        (with_ratio(lambda p: (p[:, 0] / p[:, 1]).mean()), "plain mean of the ratios"),
        (with_ratio(lambda p: np.log(p[:, 0] / p[:, 1]).mean()), "mean logarithm"),
        (lambda pairs: ratio_of(pairs, 1.96), "t is larger"),
        (lambda pairs: ratio_of(pairs, stats.norm.ppf(0.975)), "t is larger"),
        (lambda pairs: ratio_of(pairs, ddof=0), "ddof=1"),
        (with_bounds(without_root), "square root"),
        (with_bounds(unpaired), "one by one"),
        (with_bounds(lambda p: np.log(ratio_of(p)[1:])), "still logarithms"),
        (with_bounds(plus_minus_half), "belongs to the logarithms"),
        (lambda pairs: ratio_of(pairs)[0], "three numbers"),
        (lambda pairs: (1, 1, 1), "is right"),
        (lambda pairs: pairs["main"], "stopped with TypeError"),
        (0.9, "a function is asked for"),
    ],
)
def test_a_usual_mistake_with_times_is_named(mistake, what):
    assert_wrong("04e", mistake, what)
