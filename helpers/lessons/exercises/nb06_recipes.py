"""Check of notebook 06: a recipe for a job, from a table of recipes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from helpers.lessons.checks import Reply, exercise, right, value_of, wrong
from helpers.lessons.reading import named

# --- 06f: a recipe for a job -------------------------------------------------------

# (name, GiB at the peak, whether the embeddings train, path of (gain, forgetting)): made up
RECIPES = tuple(
    {"name": name, "memory": memory, "trains_embeddings": trains, "path": path}
    for name, memory, trains, path in (
        ("main plan, gentle", 6.0, False, [(0.0, 0.0), (0.24, 0.02), (0.39, 0.05), (0.43, 0.12)]),
        ("embeddings alone", 4.0, True, [(0.0, 0.0), (0.05, 0.01), (0.09, 0.02), (0.10, 0.14)]),
        ("attention frozen, rewound", 7.5, True, [(0.0, 0.0), (0.22, 0.03), (0.37, 0.08), (0.46, 0.13)]),
        ("full, rewound", 11.0, True, [(0.0, 0.0), (0.25, 0.03), (0.41, 0.09), (0.50, 0.20)]),
        ("full, fast", 11.0, True, [(0.0, 0.0), (0.30, 0.15), (0.52, 0.30), (0.48, 0.60)]),
    )
)
JOBS = (
    {"memory": 8.0, "budget": 0.10, "new_words": True},
    {"memory": 8.0, "budget": 0.10, "new_words": False},
    {"memory": 16.0, "budget": 0.10, "new_words": True},
    {"memory": 16.0, "budget": 0.35, "new_words": False},
    {"memory": 16.0, "budget": 0.05, "new_words": True},
    {"memory": 5.0, "budget": 0.03, "new_words": False},
    {"memory": 7.5, "budget": 0.10, "new_words": True},  # exactly the memory of one recipe
    {"memory": 16.0, "budget": 0.09, "new_words": True},  # exactly the forgetting of one point
    {
        "memory": 16.0,
        "budget": 0.08,
        "new_words": True,
    },  # a line between two points would choose another recipe
)


def _gain_within(recipe: Mapping, budget: float) -> float:
    return max(gain for gain, forgetting in recipe["path"] if forgetting <= budget)


def _best(
    recipes: list[dict],
    job: Mapping,
    score: Callable | None = None,
    memory: bool = True,
    words: bool = True,
) -> str:
    able = [
        r
        for r in recipes
        if (r["memory"] <= job["memory"] or not memory)
        and (r["trains_embeddings"] or not job["new_words"] or not words)
    ]
    return max(able, key=score or (lambda r: _gain_within(r, job["budget"])))["name"]


def recipe_for(recipes: list[dict], job: Mapping) -> str:
    """The recipe with the highest gain within the budget, of those that fit the memory and can learn the words."""
    return _best(recipes, job)


def _end_within(recipes: list[dict], job: Mapping) -> str:
    return _best(recipes, job, lambda r: r["path"][-1][0] * (r["path"][-1][1] <= job["budget"]))


def _between(recipe: Mapping, budget: float) -> float:
    """The highest gain within the budget on the straight lines between the points."""
    path = recipe["path"]
    on_lines = [
        low[0] + (high[0] - low[0]) * (budget - low[1]) / (high[1] - low[1])
        for low, high in itertools.pairwise(path)
        if low[1] <= budget < high[1]
    ]
    return max([_gain_within(recipe, budget), *on_lines])


def _forgetting_within(recipe: Mapping, budget: float) -> float:
    return max(forgetting for gain, forgetting in recipe["path"] if gain <= budget)


def _below(job: Mapping, *keys: str) -> dict:
    """The job with its limits a little lower: what fits exactly does not count any more."""
    return {**job, **{key: job[key] - 1e-9 for key in keys}}


_AT_MOST = (
    "what needs exactly the memory, or forgets exactly the budget, is allowed: at most means <=, and not <."
)
RECIPE_MISTAKES: dict[Callable, str] = {
    lambda rows, job: _best(rows, _below(job, "memory", "budget")): _AT_MOST,
    lambda rows, job: _best(rows, _below(job, "memory")): _AT_MOST,
    lambda rows, job: _best(rows, _below(job, "budget")): _AT_MOST,
    lambda rows, job: _best(
        rows, {**job, "new_words": True}
    ): "you always ask for trained embeddings. Where the job has no new words, frozen ones will do as well.",
    lambda rows, job: _best(
        rows, job, lambda r: _between(r, job["budget"])
    ): "you went between two points of a path. Only its points are models that you can take.",
    lambda rows, job: _best(
        rows, job, lambda r: _forgetting_within(r, job["budget"])
    ): "gain and forgetting are "
    "exchanged. A point is (gain, forgetting): the budget is for the second, and the first is what you want.",
    lambda rows, job: _best(
        rows, job, lambda r: -min(f for _, f in r["path"])
    ): "you asked which path forgets least. "
    "Each begins with the base, which forgets nothing, so all are equal. Ask for the highest gain within the budget.",
    lambda rows, job: _best(rows, job, memory=False): "a recipe that does not fit the memory was taken.",
    lambda rows, job: _best(rows, job, words=False): "the job has new words, and you took a recipe that "
    "freezes the embeddings. The vectors of these words must train.",
    lambda rows, job: _best(
        rows, job, memory=False, words=False
    ): "you looked at gain and budget alone. Memory and vocabulary rule recipes out first.",
    lambda rows, job: _best(
        rows, job, lambda r: max(g for g, _ in r["path"])
    ): "you took the best gain of each path. That model can be beyond the budget of forgetting.",
    _end_within: "you judged each recipe by its last model. An earlier point of the path is a model too.",
    lambda rows, job: _best(
        rows, job, lambda r: -r["path"][-1][1]
    ): "you took the recipe that forgets least at its end. One that learns nothing wins that contest.",
    lambda rows, job: _best(
        rows, job, lambda r: -_gain_within(r, job["budget"])
    ): "you took the lowest gain within the budget. The highest is asked for: max.",
    lambda rows, job: _best(
        rows, job, lambda r: -r["memory"]
    ): "you took the smallest. It fits, but the job is to learn.",
    lambda rows, job: _best(
        rows, job, lambda r: r["path"][1][0] / r["path"][1][1]
    ): "you took the best ratio of gain "
    "to forgetting. The budget is there to be used: ask for the highest gain within it.",
    lambda rows, job: rows[0]["name"]: "you return the first row, whatever the job.",
}


@exercise("06f")
def recipe_for_a_job(answer: Any) -> Reply:
    """A function (recipes, job): the name of one recipe."""
    found = [_name(_taken(answer, job)) for job in JOBS]
    wanted = [recipe_for(list(RECIPES), job) for job in JOBS]
    if found == wanted:
        return right("what cannot be done goes first, then the highest gain within the budget.")
    for mistake, reason in RECIPE_MISTAKES.items():
        if found == [mistake(list(RECIPES), job) for job in JOBS]:
            return wrong(reason)
    i = next(i for i in range(len(JOBS)) if found[i] != wanted[i])
    return wrong(f"for the job {JOBS[i]} your function gives '{found[i]}', and '{wanted[i]}' is right.")


def _taken(answer: Any, job: Mapping) -> Any:
    nothing_left = f"For the job {job} nothing is left to choose from, and there is a recipe for each. {_why_none_is_left(job)}"
    return value_of(answer, [dict(r) for r in RECIPES], dict(job), hints={"empty": nothing_left})


# Wrong ways to rule recipes out, to what one of them says about the reader where it leaves none
_RULED_OUT: dict[Callable[[Mapping, Mapping], bool], str] = {
    lambda r, job: (
        r["memory"] <= job["memory"] and r["trains_embeddings"] == job["new_words"]
    ): "A recipe that trains the embeddings will do for a job without new words as well.",
    lambda r, job: (
        r["memory"] <= job["memory"] and r["path"][-1][1] <= job["budget"]
    ): "The last point of a path need not be within the budget: *one* point is enough.",
}


def _why_none_is_left(job: Mapping) -> str:
    """The one known way that leaves no recipe at this job and leaves some at the jobs before it, if one does."""
    first = {
        reason: next((j for j in JOBS if not any(keeps(r, j) for r in RECIPES)), None)
        for keeps, reason in _RULED_OUT.items()
    }
    reasons = [reason for reason, at in first.items() if at == job]
    needs = (
        "It needs at most the memory of the job, trained embeddings only where there are new words, and *one* point "
        "within the budget."
    )
    return reasons[0] if len(reasons) == 1 else needs


def _name(value: Any) -> str:
    """The name of a recipe of the table.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, dict):
        raise ValueError('your function returns the whole recipe: its name is asked for, recipe["name"]')
    if not isinstance(value, str) or value not in {r["name"] for r in RECIPES}:
        raise ValueError(f"the name of a recipe is asked for, found {named(value)}")
    return value
