"""Notebook 04's checks: right answers in every form, and a name for each usual mistake."""

import copy
import math

import numpy as np
import pytest
import torch

from helpers.checks import reply_to


@pytest.mark.parametrize("name", ["04a", "04b", "04c"])
def test_an_untouched_stub_is_not_attempted(name):
    reply = reply_to(name, ...)
    assert reply.ok is None and "not attempted yet" in reply.message


def assert_wrong(name, answer, what):
    reply = reply_to(name, answer)
    assert reply.ok is False
    assert what in reply.message


# --- 04a ---------------------------------------------------------------------------


def finished(losses):
    return {rate: loss for rate, loss in losses.items() if not math.isnan(loss)}


def chosen(losses):
    best = min(finished(losses), key=losses.get)
    return "wider" if best in (min(losses), max(losses)) else best


def choose(table):
    return {plan: chosen(losses) for plan, losses in table.items()}


def in_form(form):
    return lambda table: {plan: v if v == "wider" else form(v) for plan, v in choose(table).items()}


@pytest.mark.parametrize("form", [float, str, np.float64, lambda v: torch.tensor(v, dtype=torch.float64),
                                  lambda v: [v], lambda v: (v,)],
                         ids=["float", "text", "numpy", "tensor", "list", "tuple"])
def test_the_right_choice_passes_in_every_form(form):
    assert reply_to("04a", in_form(form)).ok is True


def test_the_word_wider_passes_in_capitals():
    assert reply_to("04a", lambda table: {p: "Wider" if v == "wider" else v for p, v in choose(table).items()}).ok


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
    return {plan: of_plan(losses) if not any(map(math.isnan, losses.values())) else chosen(losses)
            for plan, losses in table.items()}


@pytest.mark.parametrize(("mistake", "what"), [
    (one_rate_for_both, "both plans one rate"),
    (takes_the_edge, "at the edge of the grid"),
    (lambda table: {p: max(losses, key=losses.get) for p, losses in table.items()}, "the highest loss"),
    (lambda table: {p: sorted(losses)[p == "main"] for p, losses in table.items()}, "in the middle of its grid"),
    (lets_nan_win, "a run that diverged"),
    (forgets_the_diverged_neighbour, "a neighbour that was tried"),
    (trusts_the_order, "trusts the order"),
    (lambda table: None, "should return a dict"),
    (lambda table: {"main": 3e-4}, "should return a dict"),
    (lambda table: table["nowhere"], "stopped with KeyError"),
])
def test_a_usual_mistake_with_rates_is_named(mistake, what):
    assert_wrong("04a", mistake, what)


@pytest.mark.parametrize("answer", [3e-4, {"main": 3e-4, "full": 1e-4}, "wider"])
def test_a_result_in_place_of_the_function_is_explained(answer):
    assert_wrong("04a", answer, "the function itself")


# --- 04b ---------------------------------------------------------------------------


def save(model, optimizer, step):
    return copy.deepcopy({"weights": model.state_dict(), "moments": optimizer.state_dict(),
                          "dice": torch.get_rng_state(), "step": step})


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


@pytest.mark.parametrize("answer", [(save, load), [save, load], {"save": save, "load": load},
                                    (lambda *run: {**save(*run), "step": torch.tensor(run[2])}, load),
                                    (lambda *run: {**save(*run), "step": [run[2]]}, load)],
                         ids=["tuple", "list", "dict", "step as tensor", "step as list"])
def test_a_full_save_passes_in_every_form(answer):
    assert reply_to("04b", answer).ok is True


@pytest.mark.parametrize(("answer", "what"), [
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
])
def test_what_a_resumed_run_lacks_is_named(answer, what):
    assert_wrong("04b", answer, what)


def test_a_load_that_changes_something_else_is_found():
    def load_and_tamper(saved, model, optimizer):
        step = load(saved, model, optimizer)
        optimizer.param_groups[0]["lr"] = 0.01
        return step
    assert_wrong("04b", (save, load_and_tamper), "the end differs")


@pytest.mark.parametrize("answer", [save, (save,), (save, 3), "weights", {"save": save}])
def test_anything_but_two_functions_is_explained(answer):
    assert_wrong("04b", answer, "two functions are asked for")


def test_the_check_leaves_the_readers_random_state_alone():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    reply_to("04b", (save, load))
    assert torch.equal(before, torch.get_rng_state())


# --- 04c ---------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [3.24, "3.24", torch.tensor(3.24), [3.24], (3.24,), np.float32(3.24), 1620 / 500])
def test_the_mean_over_tokens_passes_in_every_form(answer):
    assert reply_to("04c", answer).ok is True


@pytest.mark.parametrize(("answer", "what"), [
    (4, "the mean of the three means"), (torch.tensor(4), "the mean of the three means"), (1620, "forgot to divide"),
    (540, "by three micro-batches"), (12, "added up the three means"), (0.024, "turn each mean back"),
    (3.5, "is not it"), ([3.0, 4.0, 5.0], "one number is asked for")])
def test_a_usual_mistake_with_means_is_named(answer, what):
    assert_wrong("04c", answer, what)
