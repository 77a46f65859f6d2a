"""Replay: while a model learns a new text, a second term holds it near its base, on text that the base wrote.

    loss = mean next-token loss on the text + weight * mean KL(base || model) on a few replay windows

    windows = sample_windows(base, 64, 256, seed=9012)      the base writes them: no text of anybody else is needed
    replay = Replay(base, windows, weight=1.0)
    fit(model, plan, text, settings, replay=replay)

KL to the base as the measure of forgetting: arXiv 2401.05605; replay of self-written text: arXiv 2505.13811.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from numbers import Integral, Real

import torch
from accelerate import Accelerator
from torch import nn

from helpers.costs import ReplaySize
from helpers.files import require_whole
from helpers.measuring import CACHE_LIMIT, evaluating, log_probabilities
from helpers.models import (
    base_predictions,
    config_of,
    last_states,
    own_precision,
    plain_trunk,
    require_seed,
    require_windows,
    weight_hash,
)
from helpers.training.processes import own_share, sum_over_processes
from helpers.training.runs import TrainingError, TrainSettings, batch_rows

MOST_WEIGHT = 10**6  # usual are 0.3 to 3; far larger ones overflow
AT_A_TIME = 4  # windows, when the base reads them once


class Replay:
    """Windows that the base wrote, what the base predicts there, and how strongly it holds the model.

    The base reads the windows once. Its log-probabilities are kept where they are small enough; else its last hidden
    states and its head are, one matrix product away from them.

    Args:
        base: the untouched model. Nothing of it but its head is kept.
        windows: (n, length) token ids, best from `sample_windows(base, …)`.
        weight: of the KL term; lambda in the formula.
        batch: windows a step, of all processes together.
        seed: of their order.
        limit: bytes of log-probabilities that may be kept.

    Raises:
        TrainingError: a weight, batch or set of windows that no step can have.
        LossError: windows that are longer than the base has positions, or a setting of `require_windows`.
        ModelError: a seed that is none.
    """

    def __init__(
        self,
        base: nn.Module,
        windows: torch.Tensor,
        weight: float = 1.0,
        batch: int = 4,
        seed: int = 0,
        limit: int = CACHE_LIMIT,
    ):
        if (
            not isinstance(weight, Real) or isinstance(weight, bool) or not 0 < weight <= MOST_WEIGHT
        ):  # NaN is in no range
            raise TrainingError(
                f"The weight of the replay must be above 0, and at most {MOST_WEIGHT:,}; found {weight!r}. Usual values "
                "are 0.3 to 3; for no replay, leave it out."
            )
        if not isinstance(batch, Integral) or isinstance(batch, bool) or batch < 1:
            raise TrainingError(f"A step needs 1 replay window or more; found {batch!r}.")
        require_seed(seed)
        self.n_words = config_of(base).get_text_config().vocab_size
        if not isinstance(windows, torch.Tensor) or windows.is_meta:
            raise TrainingError(
                f"Replay windows must be a tensor, (n, length); found {type(windows).__name__}."
            )
        if windows.ndim != 2 or windows.size(0) < 1 or windows.size(1) < 2:
            raise TrainingError(
                f"Replay windows must be (n, length) with a length of 2 or more; found "
                f"{tuple(windows.shape)}."
            )
        if windows.dtype != torch.long or not 0 <= windows.min() <= windows.max() < self.n_words:
            raise TrainingError(
                f"Replay windows must hold token ids of the model, int64, 0 to {self.n_words - 1}; found "
                f"{windows.dtype}, {windows.min().item():g} to {windows.max().item():g}."
            )
        require_windows(base, windows)
        require_whole(limit, "limit is in bytes", least=0)
        self.windows, self.weight, self.batch, self.seed = windows, weight, batch, seed
        is_small = 4 * windows[:, 1:].numel() * self.n_words <= limit
        self.keeps_predictions = is_small or plain_trunk(base) is None  # else its states alone would not do
        self.head = None
        if not self.keeps_predictions:
            self.head = copy.deepcopy(base.get_output_embeddings()).requires_grad_(False)
        self.kept = self._read(base)  # (n, length - 1, vocab or width)
        self.identity = {
            "weight": weight,
            "batch": batch,
            "seed": seed,
            "windows": list(windows.shape),
            "text": self.text_hash,
            "base": weight_hash(base),
        }

    @torch.no_grad()
    def _read(self, base: nn.Module) -> torch.Tensor:
        parts = self.windows.split(AT_A_TIME)
        device = next(base.parameters()).device
        with evaluating(base), own_precision(device.type):  # as in `fit`
            if self.keeps_predictions:
                return torch.cat([log_probabilities(base, part) for part in parts])
            trunk = plain_trunk(base)
            return torch.cat([last_states(trunk, part.to(device)) for part in parts])

    @property
    def size(self) -> ReplaySize:
        """What `budget.budget` must know of it."""
        n_windows, length = self.windows.shape
        return ReplaySize(n_windows, self.batch, length, self.keeps_predictions)

    @property
    def text_hash(self) -> str:
        """SHA-256 of the windows."""
        return hashlib.sha256(self.windows.numpy().tobytes()).hexdigest()

    @property
    def n_bytes(self) -> int:
        """Bytes that are kept as long as the run goes on."""
        return (
            self.kept.nbytes + sum(p.nbytes for p in self.head.parameters())
            if self.head
            else self.kept.nbytes
        )

    def base_of(self, rows) -> Callable[[slice], torch.Tensor]:
        """The base's log-probabilities on some windows, in chunks: as `losses.divergence_loss` asks for them.

        Args:
            rows: numbers of the windows; the predictions follow each other in this order.
        """
        # indexing copies: what is kept stays
        return base_predictions(self.kept[rows].flatten(0, 1), self.head)

    def add_gradient(
        self, loss_of: nn.Module, step: int, micro: int, settings: TrainSettings, accelerator: Accelerator
    ) -> float:
        """Add the gradient of weight * mean KL of this step's windows; returns the mean KL, in nats per token.

        Which windows is a function of the step and the seed alone, so a resumed run sees the same ones. Each process
        takes its share. Gradients do not travel here: they do with the last part of the text, which follows.
        """
        rows = batch_rows(len(self.windows), self.batch, step, self.seed)
        n_tokens = len(rows) * (self.windows.size(1) - 1)  # of all processes together
        own, drift = own_share(rows, accelerator), 0.0
        with accelerator.no_sync(loss_of):
            for start in range(0, len(own), micro):
                part = own[start : start + micro]
                with torch.autocast(
                    accelerator.device.type, torch.bfloat16, settings.precision == "bfloat16"
                ):
                    total = loss_of(self.windows[part].to(accelerator.device), self.base_of(part))
                accelerator.backward(total * (self.weight * accelerator.num_processes / n_tokens))
                drift += total.item() / n_tokens
        return sum_over_processes(accelerator, drift)
