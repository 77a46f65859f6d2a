"""A guard for anybody's training loop: it applies a plan, keeps the freezing proof running, and saves the delta.

In Hugging Face's Trainer, and in TRL's, it is a callback:

    guard = FreezeGuard(model, plan, retention=Retention.sampled_from(model, 8, 64), delta="RUN")
    Trainer(model, arguments, train_dataset=rows, callbacks=[guard]).train()
    print(guard.proof)

In a loop of one's own it is a context:

    with FreezeGuard(model, plan, delta="RUN") as guard:
        optimizer = AdamW(p for p in model.parameters() if p.requires_grad)
        guard.watch(optimizer)
        for batch in batches:
            model(batch, labels=batch).loss.backward()
            optimizer.step()
            guard.step()
            optimizer.zero_grad()
"""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import nn
from transformers import TrainerCallback

from helpers.files import require_values, seen
from helpers.freezing import (
    FreezePlan,
    FreezingError,
    Proof,
    Watch,
    freezing_proof,
    require_every,
    require_plan,
)
from helpers.measuring import Retention
from helpers.models import named_parameters, require_no_prompt, unwrapped
from helpers.training.deltas import DeltaError, base_record, place_of, require_own, save_delta, some
from helpers.training.processes import is_main

FORGETTING = "eval_forgetting"  # its name among the Trainer's numbers


class FreezeGuard(TrainerCallback):
    """Apply a plan to a model, and stop its training at the first frozen weight that moves.

    The plan is applied here and now, so that an optimizer that is built afterwards holds what trains. The model
    must be the base: the delta is bound to it. For one process, or several that each hold the whole model.

    Attributes:
        ledger: what the plan does to this model.
        proof: the whole freezing proof, once training has ended; None before.
        forgetting: (step, nats per token) at each evaluation, where a retention was given.

    Args:
        every: steps between two sampled checks, see `helpers.freezing.watch`.
        retention: what the base predicts; forgetting is then measured at each evaluation.
        delta: where to save what trained, when the proof holds: a folder, or a file that ends in ".safetensors".
        tokenizer: its hash is kept in the delta.
        roles: as for `anatomy`, for a family that it does not know.

    Raises:
        LossError: a retention beside a model with a learned prompt.
        PlanError, AnatomyError: the plan does not fit the model, which is then unchanged.
        DeltaError: in the delta's place stands another file.
        NoValuesError: the model is on the meta device.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: FreezePlan,
        *,
        every: int = 20,
        retention: Retention | None = None,
        delta: str | Path | None = None,
        tokenizer=None,
        roles: dict[str, str] | None = None,
    ):
        require_plan(plan)
        require_every(every)
        if retention is not None and not isinstance(retention, Retention):
            raise TypeError(
                f"retention is a Retention, such as Retention.sampled_from(model, 8, 64); found {seen(retention)}."
            )
        if retention is not None:
            require_no_prompt(model)  # its forgetting could not be measured
        if delta is not None:
            require_own(place_of(delta))
        self.model = model
        self.plan = plan
        self.retention = retention
        self.delta = delta
        self.tokenizer = tokenizer
        self.roles = roles
        for _, parameter in named_parameters(model):
            require_values(parameter)  # before the plan changes a flag
        self.ledger = plan.apply(model, roles)
        self.base = None if delta is None else base_record(model)
        self.proof: Proof | None = None
        self.forgetting: list[tuple[int, float]] = []
        self.n_steps = 0
        self._watch = Watch(model, every)

    # --- a loop of one's own -------------------------------------------------------

    def __enter__(self) -> FreezeGuard:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is None:
            self.finish()

    def watch(self, *optimizers) -> None:
        """Take the optimizers, all of them, and look at what they hold; call it before the first step.

        Raises:
            FreezingError: a frozen tensor is held, or a trainable one is not.
        """
        self._watch.hold(*optimizers)

    def step(self) -> None:
        """Look at the model after a step of the optimizer.

        Raises:
            FreezingError: with the step and the first tensor that is not as the plan wants it.
        """
        self._after_step(self.n_steps + 1)

    def _after_step(self, step: int) -> None:
        self.n_steps = step
        self._watch.look(step)

    def evaluate(self) -> float:
        """Measure forgetting now, in nats per token, and note it with the step; needs a retention."""
        if self.retention is None:
            raise ValueError(
                "Forgetting needs a retention: FreezeGuard(…, retention=Retention.sampled_from(…))."
            )
        measured = self.retention.forgetting(self.model).mean
        self.forgetting.append((self.n_steps, measured))
        return measured

    def finish(self) -> Proof:
        """Prove the whole freeze, every bit of it, and save the delta where one is wanted.

        A trainable tensor that never moved, though it had a gradient, breaks no freeze: that is a warning.

        Raises:
            FreezingError: with all tensors that are not as they should be; no delta is saved.
            DeltaError: what trained is no number any more; no delta is saved.
        """
        watch = self._watch
        self.proof = freezing_proof(watch.before, self.model, watch.optimizer, self.plan, self.roles)
        if self.proof.breaks:
            raise FreezingError(f"Stopped at the end, after step {self.n_steps}. {self.proof}")
        if not self.proof.ok:
            warnings.warn(str(self.proof), stacklevel=2)
        if self.delta is not None:
            self._require_finite()
            if is_main():
                save_delta(
                    self.model, self.plan, self.base, self.delta, tokenizer=self.tokenizer, roles=self.roles
                )
        return self.proof

    def _require_finite(self) -> None:
        """Raise DeltaError for trained weights that are no numbers any more: nobody wants them saved."""
        broken = [n for n, p in named_parameters(self.model) if p.requires_grad and not p.isfinite().all()]
        if broken:
            raise DeltaError(
                f"No delta is saved: after step {self.n_steps} {len(broken)} trained tensors hold NaN or infinite "
                f"numbers ({some(broken)}). The training overflowed: train again, with a third of the rate."
            )

    # --- Hugging Face's Trainer ----------------------------------------------------

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        """Look at what the Trainer trains, and with what."""
        if unwrapped(model) is not unwrapped(self.model):
            raise FreezingError(
                "Stopped at step 0: the Trainer trains another model than the one that the guard was given. "
                "Give both the same object, and no peft_config."
            )
        self.n_steps = state.global_step
        self.watch(optimizer)

    def on_step_begin(self, args, state, control, **kwargs):
        """Look at what other callbacks did since the last step."""
        self._watch.look(state.global_step, sampled=False)

    def on_step_end(self, args, state, control, **kwargs):
        """Look at the model after the step."""
        self._after_step(state.global_step)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Measure forgetting, and put it beside the evaluation's own numbers."""
        if self.retention is not None:
            measured = self.evaluate()
            state.log_history.append({FORGETTING: measured, "step": state.global_step})
            if metrics is not None:
                metrics[FORGETTING] = measured

    def on_train_end(self, args, state, control, **kwargs):
        """Prove the freeze and save the delta."""
        self.finish()
