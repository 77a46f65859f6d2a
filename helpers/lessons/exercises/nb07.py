"""Checks of notebook 07: where A and B start, equal sizes, the width of a sweep, merging and timing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from helpers.lessons.checks import Reply, call, exercise, judge_number, right, wrong
from helpers.lessons.reading import finite, tensor

# --- 07a: where A and B start ------------------------------------------------------

RANK, N_IN, N_OUT = 3, 8, 6


@exercise("07a")
def start_of_the_factors(answer: Any) -> Reply:
    """A function ``init(rank, n_in, n_out)`` that returns A (rank, n_in) and B (n_out, rank)."""
    A, B = _two_factors(call(answer, RANK, N_IN, N_OUT))
    if (A.shape, B.shape) == ((N_IN, RANK), (RANK, N_OUT)):
        return wrong(
            "both are turned round. Here A is (rank, n_in) and B is (n_out, rank), so that B @ A has the "
            "shape of W, (n_out, n_in)."
        )
    if (A.shape, B.shape) == ((N_OUT, RANK), (RANK, N_IN)):
        return wrong(
            f"B comes first in what you return. A, of shape (rank, n_in) = ({RANK}, {N_IN}), is asked for first."
        )
    if (A.shape, B.shape) != ((RANK, N_IN), (N_OUT, RANK)):
        return wrong(
            f"A is {tuple(A.shape)} and B is {tuple(B.shape)}; asked is A (rank, n_in) = ({RANK}, {N_IN}) and "
            f"B (n_out, rank) = ({N_OUT}, {RANK})."
        )
    if not A.any() and not B.any():
        return wrong(
            "both are zero, so there is no gradient, ever: that of A is made with B, that of B with A, and "
            "both are zero. Start one of them at random."
        )
    if (B @ A).any():
        return wrong(
            "B A is not zero, so the model jumps before step 1: it is no longer the model that was "
            "pretrained. Start one of the two at zero."
        )
    name, lines, random = ("A", "rows", A) if A.any() else ("B", "columns", B)
    rank = int(torch.linalg.matrix_rank(random))
    if rank + int(torch.linalg.matrix_rank(B if random is A else A)) < RANK:  # each may hold a part
        alike = "are multiples of one, so all learn the same" if rank == 1 else "can be made from each other"
        return wrong(
            f"the {RANK} {lines} of {name} {alike}: that is rank {rank}, not {RANK}. Start {name} at random."
        )
    if not A.any():
        return right(
            "Nothing jumps, and the gradient of A is not zero. (Most code does it the other way: B zero, A "
            "random. By symmetry both can learn.)"
        )
    return right(
        "B A is zero, so nothing jumps; A is not, so B has a gradient from the first step on, and A from the "
        "second."
    )


def _two_factors(answer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise ValueError("your function should return two tensors, A and B")
    if any(isinstance(value, torch.Tensor) and not value.is_floating_point() for value in answer):
        raise ValueError(
            "a tensor of whole numbers can have no gradient, so it never trains: use torch.randn, torch.zeros"
        )
    A, B = map(tensor, answer)
    return A, B


# --- 07b: equal sizes --------------------------------------------------------------


@exercise("07b")
def rank_of_equal_size(answer: Any) -> Reply:
    """GPT-Neo 125M: the rank of LoRA on the MLP that has as many parameters as rank 10 on attention."""
    return judge_number(
        answer,
        8,
        "Both have 737,280 parameters: 12 x 8 x (768 + 3,072) x 2 = 12 x 10 x 4 x 1,536.",
        {
            10: "equal rank is not equal size: one MLP matrix is longer than one attention matrix. Count r (in + out).",
            12.5: "turned round: you have 10 x 92,160 / 73,728. The MLP has more parameters for each rank, so its rank "
            "must be smaller.",
            5: "you compared the matrices themselves: the MLP's have twice as many numbers. LoRA's factors grow with "
            "in + out, not with in x out.",
            4: "you forgot that the MLP has two matrices and attention four: 4 x 1,536 x 10 = 2 x 3,840 x r.",
            16: "you counted one matrix of the MLP in each block. It has two: c_fc and c_proj.",
            2: "you counted one matrix of attention in each block. It has four: q, k, v and out_proj.",
            6: "you counted three matrices of attention in each block. There are four: q, k, v and out_proj.",
            20: "you compared the number of matrices, four and two. Their sizes differ as well: count r (in + out).",
            2.5: "you compared one full matrix with another, in x out. LoRA's factors grow with in + out, and there are four "
            "matrices and two.",
            61_440: "this is the number of parameters in one block of attention. Which rank on the MLP has as many?",
            96: "this is 12 times the rank: the 12 blocks are on both sides. Compare one block with one block.",
            737_280: "this is the number of parameters, and it is right. Which rank on the MLP has as many?",
        },
        within=1e-6,
        otherwise="Count r (in + out) for each matrix: four of 768 x 768, two of 768 x 3,072.",
    )


# --- 07c: the width of a sweep -----------------------------------------------------

SWEEP = {1e-5: 3.49, 1e-4: 3.45, 1e-3: 3.38, 3e-3: 3.42, 1e-2: 3.44, 3e-2: math.nan}


@exercise("07c")
def width_of_a_sweep(answer: Any) -> Reply:
    """Decades of rates within 0.05 nats of the best, in `SWEEP`."""
    return judge_number(
        answer,
        math.log10(3),
        "From 1e-3 to 3e-3: log10(3), about half a decade, one step of the usual grid.",
        {
            2.0: "this counts the rates, or takes 1e-4 to 1e-2. A width is log10(highest / lowest), over the rates whose "
            "loss is at most 3.43.",
            0.002: "this is the difference of the two rates. Rates act by their ratio: take log10(highest / lowest).",
            3.0: "3 may be two things: the ratio of the rates 1e-3 and 3e-3, then take its log10; or the decades from "
            "1e-5 to 1e-2, then take only the rates whose loss is at most 3.43.",
            math.log2(3): "this is the logarithm to base 2. A decade is a factor of ten: take log10.",
            **dict.fromkeys(
                (0.04, 0.05),
                "this is a difference of losses, or the limit of 0.05. A width is one of rates: log10(highest / lowest).",
            ),
            math.log(3): "this is the natural logarithm. A decade is a factor of ten: take log10.",
            1.0: "3.44 is 0.06 above the best, 3.38: the rate 1e-2 is out.",
            math.log10(
                30
            ): "3.45 is 0.07 above the best, 3.38: the rate 1e-4 is out. Only rates that were tried and are "
            "near enough count; where the true edge lies between two of them, nobody has seen.",
            math.log10(300): "1e-5 is far from the best: 3.49 against 3.38.",
            math.log10(3000): "you took the whole grid. Only rates within 0.05 of the best count.",
        },
        within=0.03,
        otherwise="Best loss plus 0.05; the rates up to there; log10(highest / lowest).",
    )


# --- 07d: merged = unmerged, and both timed ----------------------------------------

ALPHA = 4.0  # so that every wrong factor below is another number
DRIFT = 1.05  # each run on the pretended machine takes so many times the one before
COLD = {"a": 9.0, "b": 90.0}  # what the first run of each takes on top


@exercise("07d")
def merge_and_time(answer: Any) -> Reply:
    """Two functions: ``merge(W, A, B, alpha)`` and ``compare(a, b, n_pairs, clock)``."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 2 or not all(callable(f) for f in answer):
        raise ValueError("two functions are asked for: answer_07d = (merge, compare)")
    merge, compare = answer
    return (
        _judge_merge(merge)
        or _judge_timing(compare)
        or right("One matrix does the work of three, and the clock has no favourite.")
    )


def _judge_merge(merge: Callable) -> Reply | None:
    generator = torch.Generator().manual_seed(6)
    W, A, B = (
        torch.randn(*shape, generator=generator) for shape in ((N_OUT, N_IN), (RANK, N_IN), (N_OUT, RANK))
    )
    before = W.clone()
    found = call(merge, W, A, B, ALPHA)
    if not torch.equal(W, before):
        return wrong("merge changed the W that it was given. Return a new matrix, or nobody can go back.")
    if not isinstance(found, torch.Tensor) or found.shape != W.shape:
        return wrong(f"merge should return a matrix of W's shape, {tuple(W.shape)}.")
    known = {
        1.0: "alpha / r is forgotten: you added B A. The unmerged layer adds (alpha / r) B A.",
        ALPHA: "you multiplied by alpha and did not divide by the rank, which is the number of rows of A.",
        RANK / ALPHA: "the factor is turned round: it is alpha / r, not r / alpha.",
        -ALPHA / RANK: "the sign is turned round: the change is added.",
        ALPHA
        / N_OUT: "you divided by the rows of B, which is the width of the output. The rank is the number of rows "
        "of A.",
        ALPHA / N_IN: "you divided by the width. The rank is the number of rows of A.",
        0.0: "this is W itself. Add (alpha / r) B A.",
    }
    for scale, reason in known.items():
        if torch.allclose(found, W + scale * B @ A, atol=1e-5):
            return wrong(reason)
    if torch.allclose(found, ALPHA / RANK * B @ A, atol=1e-5):
        return wrong("this is the change alone. The merged matrix is W plus the change.")
    if not torch.allclose(found, W + ALPHA / RANK * B @ A, atol=1e-5):
        return wrong("a layer with your merged matrix gives another output than W x + (alpha / r) B A x.")
    return None


def _judge_timing(compare: Callable) -> Reply | None:
    """Try it on a pretended machine: still, then slower by 5% with every run, then with unequal work."""
    still = _ratios(compare, b_costs=1.0, drift=1.0)
    if max(map(abs, still[1:])) < 0.012 < abs(still[0]):
        return wrong(
            "the first run of each is among the numbers. It pays for warming up: run both once before the "
            "clock counts."
        )
    if max(map(abs, still)) > 0.012:
        return wrong(
            "two equally fast functions come out apart even on a machine that keeps still. What else is "
            "inside the measured time?"
        )
    mean = _mean_ratio(compare, b_costs=1.0)
    if abs(mean) > 0.2:
        return wrong(
            f"two equally fast functions come out {abs(math.expm1(mean)):.0%} apart on a machine that "
            "slows down, because one was run wholly after the other. Run them in pairs."
        )
    if abs(mean) > 0.012 and abs(_mean_ratio(compare, b_costs=2.0)) < 0.2:
        return wrong(
            "the order alternates, and each pair holds its times in the order in which they were measured. "
            "Return (seconds of a, seconds of b), also where b ran first."
        )
    if abs(mean) > 0.012:
        return wrong(
            "the same function always comes first in its pair, so a machine that slows down favours it. Let "
            "the order alternate: a b, b a, a b, …"
        )
    mean = _mean_ratio(compare, b_costs=2.0)
    if abs(mean + math.log(2)) < 0.02:
        return wrong(
            "each pair is turned round: (seconds of a, seconds of b) was asked for, also where b ran first."
        )
    if abs(mean - math.log(2)) > 0.02:
        return wrong(
            f"where b takes twice as long as a, your pairs say {math.exp(mean):.2f} times. What else is "
            "inside the measured time?"
        )
    return None


def _mean_ratio(compare: Callable, b_costs: float) -> float:
    """Mean of ln(b / a) on the machine that slows down."""
    ratios = _ratios(compare, b_costs)
    return sum(ratios) / len(ratios)


def _ratios(compare: Callable, b_costs: float, drift: float = DRIFT, n_pairs: int = 10) -> list[float]:
    """ln(b / a) of each pair that ``compare`` returns, on the pretended machine."""
    now, n_runs, n_looks, cold = 0.0, 0, 0, dict(COLD)

    def run(name: str, cost: float) -> None:
        nonlocal now, n_runs
        now += cost * drift**n_runs + cold.pop(name, 0.0)
        n_runs += 1

    def clock() -> float:
        nonlocal n_looks
        n_looks += 1
        return now

    pairs = call(compare, lambda: run("a", 1.0), lambda: run("b", b_costs), n_pairs, clock)
    if not isinstance(pairs, (list, tuple)) or len(pairs) != n_pairs:
        raise ValueError(f"compare should return a list of n_pairs pairs, here {n_pairs}")
    if any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs):
        raise ValueError("each entry of the list should be a pair: (seconds of a, seconds of b)")
    seconds = [(finite(a), finite(b)) for a, b in pairs]
    if any(x <= 0 for pair in seconds for x in pair):
        raise ValueError(
            "a time is not above 0: call clock() before and after each run, and take the difference"
        )
    if not n_looks:
        raise ValueError("compare never calls the clock that it is given: use clock(), and no other")
    return [math.log(b / a) for a, b in seconds]
