"""Which rate of a plan keeps and which learns: read from the tuning runs, by the protocol's rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from helpers.files import write_json
from helpers.measuring import RunRecord
from helpers.study.jobs import (
    AUTHORS,
    FULL,
    Study,
    grid_of,
    other_plans,
    tuning_job,
)
from helpers.study.records import read_record, read_run


@dataclass(frozen=True)
class Rate:
    """One line of the table of rates: what the tuning runs of a plan on a text did at a rate.

    Attributes:
        n_seeds, n_reach: tuning runs, and how many of them reached the level of equal learning.
        best_gain: mean of their best gains, nats per token.
        forgetting_at_level: mean, nats per token; None where a run missed the level.
    """

    plan: str
    text: str
    rate: float
    n_seeds: int
    n_reach: int
    best_gain: float
    forgetting_at_level: float | None


def tried_rates(study: Study, plan: str, text: str, seeds: list[int]) -> list[float]:
    """Rates at which every tuning seed was run, from the files."""
    folder = study.place("tuning") / plan / text
    found = {float(p.stem.split("-", 1)[1]) for p in folder.glob(f"{seeds[0]}-*.json")}
    return sorted(r for r in found if all((folder / f"{s}-{r:g}.json").exists() for s in seeds))


def is_tuned(study: Study, plan: str, text: str, seeds: list[int]) -> bool:
    """Whether the whole grid was run: a plan that was tuned in part has no best rate yet."""
    return set(grid_of(study, plan)) <= set(tried_rates(study, plan, text, seeds))


def tuned(study: Study, plan: str, text: str, rate: float, seeds: list[int]) -> list[RunRecord]:
    paths = [tuning_job(study, plan, text, rate, s).path for s in seeds]
    return [read_run(p) for p in paths]


def row_of(study: Study, plan: str, text: str, rate: float, seeds: list[int], level: float) -> Rate:
    """One line of the rate table: means over the tuning seeds; no forgetting where a seed misses the level.

    A run that diverged gained nothing, and has not reached the level.
    """
    from helpers.measuring import forgetting_at, frontier

    runs = [r.evaluations for r in tuned(study, plan, text, rate, seeds) if r.is_finished]
    at_level = [forgetting_at(e, level) for e in runs] + [None] * (len(seeds) - len(runs))
    reach = [f for f in at_level if f is not None]
    return Rate(
        plan,
        text,
        rate,
        n_seeds=len(seeds),
        n_reach=len(reach),
        best_gain=round(sum(float(frontier(e)[0][-1]) for e in runs) / len(seeds), 5),
        forgetting_at_level=round(sum(reach) / len(reach), 6) if len(reach) == len(seeds) else None,
    )


def matched_gain_of(study: Study, text: str, seeds: list[int]) -> float:
    """g*: the first share of full training's best mean gain, over all its rates."""
    share = study.protocol["decisions"]["shares"][0]
    rows = [row_of(study, FULL, text, r, seeds, 0.0) for r in tried_rates(study, FULL, text, seeds)]
    if not rows:
        raise untuned_level(text)
    return share * max(row.best_gain for row in rows)


def untuned_level(text: str) -> SystemExit:
    return SystemExit(
        f"The level of equal learning on '{text}' is a share of what full training gains there, and full "
        f"training has not been tuned on it yet. Add '{FULL}' to --plans."
    )


def choose(rows: Sequence[Rate]) -> dict[str, float]:
    """The two rates of a plan: *learn* gains most, *keep* forgets least at the level."""
    learn = max(rows, key=lambda r: r.best_gain).rate
    reaching = [r for r in rows if r.forgetting_at_level is not None]
    keep = min(reaching, key=lambda r: r.forgetting_at_level).rate if reaching else learn
    return {"keep": keep, "learn": learn}


def extension(study: Study, rates: list[float], start: list[float], chosen: dict[str, float]) -> list[float]:
    """The next rate beyond an edge where an optimum lies; none once the limit of steps is reached."""
    ladder, limit = study.protocol["decisions"]["ladder"], study.numbers["extensions"]
    new = []
    for edge, step, first in ((min(rates), -1, min(start)), (max(rates), 1, max(start))):
        place = ladder.index(edge) + step
        n_before = abs(ladder.index(edge) - ladder.index(first))
        if edge in chosen.values() and 0 <= place < len(ladder) and n_before < limit:
            new.append(ladder[place])
    return new


def choose_rates(study: Study) -> dict:
    """Read the tuning runs and write the rates file: the table of all rates, the level, the chosen ones."""
    numbers, seeds = study.numbers, study.numbers["seeds"]["tuning"]
    levels = {t: matched_gain_of(study, t, seeds) for t in AUTHORS if is_tuned(study, FULL, t, seeds)}
    if not levels:
        raise untuned_level(AUTHORS[0])
    groups = [(p, t, seeds) for p in numbers["deciding_plans"] for t in levels]
    groups += [(p, t, seeds[:1]) for p in other_plans(study) for t in numbers["other_texts"] if t in levels]
    table, chosen = [], {}
    for plan, text, own_seeds in groups:
        if is_tuned(study, plan, text, own_seeds):
            rows = [
                row_of(study, plan, text, r, own_seeds, levels[text])
                for r in tried_rates(study, plan, text, own_seeds)
            ]
            table += rows
            chosen.setdefault(plan, {})[text] = choose(rows)
    record = {
        "matched_gain": levels,
        "smallest_forgetting": smallest(study, table, chosen),
        "grid": numbers["grid"],
        "seed": seeds[0],
        "seeds": seeds,
        "protocol": study.protocol.sha256,
        "chosen": chosen,
        "table": [asdict(row) for row in table],
    }
    write_json(study.rates_file, record)
    return record


def smallest(study: Study, table: Sequence[Rate], chosen: dict) -> dict[str, float]:
    """The smallest difference in forgetting that counts, by text: a number from now on."""
    rules, found = study.protocol["decisions"], {}
    for text, rates in chosen[FULL].items():
        own = next(r for r in table if (r.plan, r.text, r.rate) == (FULL, text, rates["keep"]))
        found[text] = round(
            max(
                rules["smallest_forgetting"],
                rules["smallest_forgetting_share"] * (own.forgetting_at_level or 0),
            ),
            5,
        )
    return found


def chosen_rates(study: Study) -> dict | None:
    """The chosen rates, or None before the tuning."""
    place = study.rates_file
    return read_record(place, {"chosen": dict})["chosen"] if place.exists() else None
