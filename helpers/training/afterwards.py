"""After the last step: go back towards the base where that was asked for, and judge the run by its own numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from helpers.measuring import CATASTROPHIC, Estimate, Retention
from helpers.training.rewinding import RewindError, choose_share, rewind, rewound


@dataclass(frozen=True)
class Rewound:
    """What a share of the change gives, measured: held-out losses and forgetting in nats per token."""

    share: float
    gain_kept: float  # part of the gain of the best share that was tried
    losses: dict[float, float]  # share to held-out loss
    forgetting_before: Estimate
    forgetting_after: Estimate

    def as_dict(self) -> dict:
        return {
            "share": self.share,
            "gain_kept": self.gain_kept,
            "losses": {f"{share:g}": loss for share, loss in self.losses.items()},
            "forgetting_before": self.forgetting_before.mean,
            "forgetting_after": self.forgetting_after.mean,
        }


def asked_share(word: str | None) -> float | None:
    """The number in --rewind; None for "auto", or where nothing was asked.

    Raises:
        RewindError: it is neither "auto" nor a number from 0 to 1.
    """
    if word in (None, "auto"):
        return None
    try:
        share = float(word)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise RewindError(f"--rewind must be auto, or a number from 0 (base) to 1 (tuned); found '{word}'.")
    return share


def measured_rewind(
    model: nn.Module,
    retention: Retention,
    loss_of: Callable[[nn.Module], float],
    base_loss: float,
    share: float | None,
) -> Rewound:
    """Measure a share, or the one that `choose_share` chooses; the model stays as it is.

    Args:
        loss_of: the loss on the held-out text that training looked at, never on the test text.
        base_loss: the same of the base.
        share: None to choose.
    """
    tried = {"keep": 1.0, "shares": sorted({share, 1.0})} if share is not None else {}
    choice = choose_share(model, retention.base, loss_of, base_loss, **tried)
    chosen = choice.share if share is None else share
    best = base_loss - min(choice.losses.values())
    kept = (base_loss - choice.losses[chosen]) / best if chosen in choice.losses and best > 0 else 0.0
    before = retention.forgetting(model)
    with rewound(model, retention.base, chosen):
        after = retention.forgetting(model)
    return Rewound(chosen, kept, choice.losses, before, after)


def apply(model: nn.Module, retention: Retention, found: Rewound) -> None:
    """Put the rewound weights into the model."""
    rewind(model, retention.base, found.share)


def judgement(best_step: int, last_step: int, forgetting: float, found: Rewound | None, applied: bool) -> str:
    """What the run's own numbers say: did it learn to the end, how much did it forget, and what helps.

    Args:
        forgetting: of the weights that are kept, in nats per token.
        found: a share that was measured in this run; None where none was.
        applied: whether the kept weights are those of that share.
    """
    if best_step == 0:
        learned = "Training did not help: the held-out loss was lowest before the first step."
    elif best_step == last_step:
        learned = "The held-out loss was still falling at the last step."
    else:
        learned = f"The held-out loss was lowest at step {best_step} of {last_step}; those weights are kept."
    size = "catastrophic, by the study's protocol" if forgetting >= CATASTROPHIC else "not catastrophic"
    forgot = f"The model forgot {forgetting:.2f} nats per token: {size} ({CATASTROPHIC:g} or more)."
    if found is None or best_step == 0:
        return f"{learned} {forgot}"
    measured = (
        f"{found.forgetting_before.mean:.2f} to {found.forgetting_after.mean:.2f} nats per token, and "
        f"{found.gain_kept:.0%} of the gain stays"
    )
    if applied:
        return f"{learned} {forgot} Rewinding to {found.share:g} took forgetting from {measured}."
    return (
        f"{learned} {forgot} Measured in this run: --rewind {found.share:g} takes forgetting from {measured}."
    )
