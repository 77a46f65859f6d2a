"""The exercises of notebook 06: right in every form, and each known mistake named."""

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from helpers.lessons.checks import reply_to
from helpers.lessons.exercises import nb06, nb06_recipes
from support.said import assert_wrong


@pytest.mark.parametrize("name", ["06a", "06b", "06c", "06d", "06e", "06f"])
def test_an_untouched_stub_is_not_attempted(name):
    assert reply_to(name, ...).ok is None


# --- 06a ---------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [0.105, "0.105", torch.tensor(0.105), [0.105]])
def test_06a_right_in_any_form(answer):
    assert reply_to("06a", answer).ok


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (0.10, "Between two points"),
        (0.12, "more than the budget"),
        (0.09, "at the end"),
        (0.11, "halfway"),
        (0.115, "three quarters"),
        (0.07, "The gain that it buys"),
        (0.5, "two neighbouring points"),
    ],
)
def test_06a_names_the_mistake(answer, what):
    assert_wrong("06a", answer, what)


# --- 06b ---------------------------------------------------------------------------


def gain(points, point, key="test"):
    return points[0][key] - point[key]


def by_rule(points, key="dev", kept=0.9):
    best = max(gain(points, p, key) for p in points)
    return next(p for p in points if gain(points, p, key) >= kept * best)


def test_06b_right():
    assert reply_to("06b", lambda points: (by_rule(points)["alpha"], gain(points, by_rule(points)))).ok
    assert reply_to("06b", lambda points: [by_rule(points)["alpha"], gain(points, by_rule(points))]).ok


@pytest.mark.parametrize(
    ("choose", "what"),
    [
        (lambda p: (by_rule(p, "test")["alpha"], gain(p, by_rule(p, "test"))), "with the test text"),
        (
            lambda p: (min(p, key=lambda e: e["test"])["alpha"], max(gain(p, e) for e in p)),
            "with the test text",
        ),
        (lambda p: (by_rule(p, kept=1.0)["alpha"], gain(p, by_rule(p, kept=1.0))), "lowest dev loss"),
        (lambda p: (by_rule(p)["alpha"], gain(p, by_rule(p), "dev")), "report the dev gain"),
        (lambda p: (by_rule(p)["alpha"], by_rule(p)["test"]), "report the test loss"),
        (lambda p: (by_rule(p)["alpha"], -gain(p, by_rule(p))), "wrong sign"),
        (lambda p: by_rule(p)["alpha"], "only the share"),
        (lambda p: (p[-1]["alpha"], gain(p, p[-1])), "kept the tuned model"),
        (lambda p: nb06._largest(p), "largest share"),
        (lambda p: nb06._of_the_tuned_gain(p), "best gain"),
    ],
)
def test_06b_names_the_mistake(choose, what):
    assert_wrong("06b", choose, what)


def test_06b_knows_the_base_where_nothing_was_gained():
    assert nb06.chosen_on_dev(nb06.ROWS[-1]) == (0.0, 0.0)


# --- 06c ---------------------------------------------------------------------------


def go_back(base, tuned, alpha):
    return {name: torch.lerp(base[name], tuned[name], alpha) for name in base}


@pytest.mark.parametrize(
    "function",
    [
        go_back,
        lambda b, t, a: {n: (1 - a) * b[n] + a * t[n] for n in b},
        lambda b, t, a: {n: b[n] if a == 0 else t[n] if a == 1 else b[n] + a * (t[n] - b[n]) for n in b},
    ],
)
def test_06c_right_in_any_form(function):
    assert reply_to("06c", function).ok


def in_place(base, tuned, alpha):
    for name in base:
        tuned[name].copy_(torch.lerp(base[name], tuned[name], alpha))
    return tuned


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda b, t, a: {n: b[n] + a * (t[n] - b[n]) for n in b}, "is rounded twice"),
        (lambda b, t, a: go_back(t, b, a), "turned round"),
        (lambda b, t, a: {n: a * (t[n] - b[n]) for n in b}, "the change alone"),
        (lambda b, t, a: {n: t[n] + a * (t[n] - b[n]) for n in b}, "away from the base"),
        (lambda b, t, a: {n: b[n] + a**2 * (t[n] - b[n]) for n in b}, "not halfway"),
        (in_place, "changed the weights"),
        (lambda b, t, a: {"wte.weight": b["wte.weight"]}, "is missing"),
        (lambda b, t, a: {n: 0.5 for n in b}, "no tensor"),
        (lambda b, t, a: list(b.values()), "a dict from name"),
    ],
)
def test_06c_names_the_mistake(function, what):
    assert_wrong("06c", function, what)


def test_the_plain_formula_misses_the_tuned_weights_of_the_check():
    base, tuned = nb06._models()
    assert any(not torch.equal(base[n] + (tuned[n] - base[n]), tuned[n]) for n in base)


# --- 06d ---------------------------------------------------------------------------


def in_roles(base, tuned, roles, shares, absent=1.0):
    return {n: torch.lerp(base[n], tuned[n], shares.get(roles[n], absent)) for n in base}


def test_06d_right():
    assert reply_to("06d", in_roles).ok


def first_alone(base, tuned, roles, shares):
    found = in_roles(base, tuned, roles, shares)
    return found | {"h.1.attn.weight": tuned["h.1.attn.weight"].clone()}


def only_named(base, tuned, roles, shares):
    return {n: w for n, w in in_roles(base, tuned, roles, shares).items() if roles[n] in shares}


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda b, t, r, s: in_roles(b, t, r, s, 0.0), "stay tuned: share 1"),
        (lambda b, t, r, s: go_back(b, t, 0.5), "one and the same share"),
        (lambda b, t, r, s: in_roles(t, b, r, s, 0.0), "turned round"),
        (first_alone, "has many tensors"),
        (lambda b, t, r, s: t, "nothing went back"),
        (only_named, "return it as it is"),
        (lambda b, t, r, s: in_place(b, t, 0.5), "changed the weights"),
        (lambda b, t, r, s: b, "is not where its share"),
    ],
)
def test_06d_names_the_mistake(function, what):
    assert_wrong("06d", function, what)


# --- 06e ---------------------------------------------------------------------------


def kl(base, model):
    log_p, log_q = log_softmax(base, -1), log_softmax(model, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


@pytest.mark.parametrize(
    "function",
    [
        lambda t, b, m, w: t + w * kl(b.detach(), m),
        lambda t, b, m, w: (
            t
            + w
            * kl_div(log_softmax(m, -1), log_softmax(b.detach(), -1), log_target=True, reduction="none")
            .sum(-1)
            .mean()
        ),
    ],
)
def test_06e_right_in_any_form(function):
    assert reply_to("06e", function).ok


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda t, b, m, w: t + w * kl(m, b), "KL(model || base)"),
        (lambda t, b, m, w: t + kl(b, m), "weight is missing"),
        (lambda t, b, m, w: w * kl(b, m), "loss on the text is missing"),
        (lambda t, b, m, w: t - w * kl(b, m), "sign"),
        (lambda t, b, m, w: t + w * kl(b, m) * b[..., 0].numel(), "added up all tokens"),
        (lambda t, b, m, w: t + w * kl(b, m) / b.size(-1), "mean over the vocabulary"),
        (lambda t, b, m, w: t + w * kl(b, m) * b.size(1), "divided by the windows"),
        (lambda t, b, m, w: w * (t + kl(b, m)), "before both"),
        (lambda t, b, m, w: (1 - w) * t + w * kl(b, m), "shared the weight out"),
        (lambda t, b, m, w: (t + w * kl(b, m)).item(), "no gradient"),
        (lambda t, b, m, w: t + w * kl(b, m.detach()), "model's logits got no gradient"),
        (lambda t, b, m, w: t.detach() + w * kl(b.detach(), m), "do not detach it"),
        (lambda t, b, m, w: t + w * kl(b, m), "base's logits got a gradient"),
        (lambda t, b, m, w: t * 0 + 77, "is right"),
    ],
)
def test_06e_names_the_mistake(function, what):
    assert_wrong("06e", function, what)


# --- 06f ---------------------------------------------------------------------------


def recipe_for(recipes, job):
    able = [
        r
        for r in recipes
        if r["memory"] <= job["memory"] and (r["trains_embeddings"] or not job["new_words"])
    ]
    return max(able, key=lambda r: max(g for g, f in r["path"] if f <= job["budget"]))["name"]


def test_06f_right():
    assert reply_to("06f", recipe_for).ok


def test_06f_asks_for_the_name_and_not_the_recipe():
    whole = lambda r, j: next(x for x in r if x["name"] == recipe_for(r, j))  # noqa: E731
    assert_wrong("06f", whole, "its name is asked for")


@pytest.mark.parametrize("mistake", nb06_recipes.RECIPE_MISTAKES, ids=nb06_recipes.RECIPE_MISTAKES.values())
def test_06f_names_each_mistake(mistake):
    assert_wrong("06f", mistake, nb06_recipes.RECIPE_MISTAKES[mistake])


def test_06f_shows_the_job_that_went_wrong():
    assert_wrong("06f", lambda r, j: "full, rewound", "for the job")
    assert_wrong("06f", lambda r, j: "the best one", "name of a recipe is asked for")


def test_each_job_has_a_recipe_of_its_own():
    found = [nb06_recipes.recipe_for(list(nb06_recipes.RECIPES), job) for job in nb06_recipes.JOBS]
    assert set(found) == {r["name"] for r in nb06_recipes.RECIPES}
