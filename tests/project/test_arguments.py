"""What computes takes what it can compute: another number, name or tensor is refused in one line that names it."""

import copy
import math
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import helpers
from helpers import costs, freezing, models, results, training
from support import tiny

HELPERS = Path(helpers.__file__).parent
CONFIG = tiny.config(vocab_size=60)
MODEL = models.build_model(CONFIG, seed=1)
PARTS = models.anatomy(MODEL)
WINDOWS = torch.randint(1, 60, (6, 20), generator=torch.Generator().manual_seed(0))
PLAN = freezing.FreezePlan.freeze("attention", "embeddings")
SCALED = costs.Plan.of(CONFIG, PLAN, 2, 16)
ONES = torch.ones(6, 20)

NO_COUNT = [0, -1, 1.5, math.nan, math.inf, True, "2", None, [2], np.float64(2.0), np.array([2])]
NO_SIZE = [-1, -0.5, math.nan, True, "2", None, [2]]
NO_WORDS = [  # neither a batch of windows, nor labels beside one
    WINDOWS.numpy(), WINDOWS.tolist(), WINDOWS.float(), WINDOWS.bool(), WINDOWS.to(torch.uint8), WINDOWS[0], WINDOWS[:0],
    WINDOWS[:, :1], WINDOWS + 60, -WINDOWS, "x",
]  # fmt: skip
OTHER_PLACES = [WINDOWS[:3], WINDOWS[:, :9], torch.cat([WINDOWS, WINDOWS]), torch.cat([WINDOWS, WINDOWS], 1)]
NO_MASK = [
    ONES.numpy(), ONES.tolist(), ONES[:, :9], ONES[:1], ONES[0], ONES * math.nan, -ONES, 2 * ONES, ONES.log() - 1e9,
    ONES.expand(2, 6, 20), "x",
]  # fmt: skip


def bottom(ids=WINDOWS[:2], n_tokens=40, limit=2**20):
    model = copy.deepcopy(MODEL)
    freezing.FreezePlan.freeze("first-half").apply(model)
    return freezing.find_bottom(model, ids, n_tokens, limit)


def changed(**settings):
    model = copy.deepcopy(MODEL)
    return freezing.change_plan(model, torch.optim.SGD(model.parameters()), PLAN, **settings)


def rewound(base):
    with training.rewound(copy.deepcopy(MODEL), base, 0.5):
        pass


CALLS = {  # what is called with one thing: things that it refuses
    "n_adapter_parameters": (lambda rank: freezing.n_adapter_parameters(CONFIG, "mlp", rank), NO_COUNT),
    "find_bottom, ids": (lambda ids: bottom(ids), NO_WORDS),
    "find_bottom, n_tokens": (lambda n: bottom(n_tokens=n), NO_COUNT),
    "find_bottom, limit": (lambda n: bottom(limit=n), NO_COUNT[1:]),
    "BottomSize": (costs.BottomSize, NO_COUNT[1:]),
    "ReplaySize": (costs.ReplaySize, NO_COUNT),
    "need": (SCALED.need, NO_COUNT),
    "need, frozen": (lambda frozen: SCALED.need(2, frozen), [0, 1, 3, -4, math.nan, "4", None]),
    "fewest": (SCALED.fewest, [0, *NO_SIZE[:3], "2", None, [2]]),
    "fewest, most": (lambda most: SCALED.fewest(16, most=most), NO_COUNT),
    "fewest_of": (SCALED.fewest_of, ["", "t4", "T5", None, 4]),
    "compare": (lambda other: costs.compare(SCALED.predicted, other), [None, "x", {}, SCALED]),
    "next_token_loss": (lambda ids: models.next_token_loss(MODEL, ids), NO_WORDS),
    "next_token_loss, labels": (
        lambda labels: models.next_token_loss(MODEL, WINDOWS, labels),
        [*NO_WORDS, *OTHER_PLACES, torch.full((6, 20), -1)],
    ),
    "next_token_loss, mask": (lambda mask: models.next_token_loss(MODEL, WINDOWS, None, mask), NO_MASK),
    "divergence_loss": (lambda ids: models.divergence_loss(MODEL, ids, None), NO_WORDS),
    "require_no_leak": (lambda ids: models.require_no_leak(MODEL, ids), NO_WORDS[:7]),
    "choose_precision": (lambda device: models.choose_precision("auto", device), [None, [], MODEL]),
    "build_model": (models.build_model, [None, "gpt2", {}, CONFIG.to_dict(), MODEL]),
    "build_on_meta": (models.build_on_meta, [None, "gpt2", {}, MODEL]),
    "enable_checkpointing": (models.enable_checkpointing, [None, "x"]),
    "change_plan, lr": (lambda lr: changed(lr=lr), [*NO_SIZE, math.inf]),
    "change_plan, momentum": (lambda value: changed(momentum=value), [*NO_SIZE, math.inf]),
    "select": (lambda selector: freezing.select(PARTS, selector), ["q@0-", "attention@", "", None, 1, ["q"]]),
    "key_of": (freezing.key_of, ["full", None, ("attention",)]),
    "Replay": (lambda ids: training.Replay(MODEL, ids, limit=0), [*NO_WORDS, WINDOWS.repeat(1, 2), ONES.long().to("meta")]),
    "Replay, limit": (lambda limit: training.Replay(MODEL, WINDOWS, limit=limit), NO_COUNT[1:]),
    "rewound": (rewound, [None, "x", {"transformer.wte.weight": 1.0}, {"transformer.wte.weight": np.ones((60, 32))}]),
    "read_evidence": (results.read_evidence, ["", "gpt2", "GPT-NEO", None]),
}  # fmt: skip


@pytest.mark.parametrize(
    "name, wrong", [(name, one) for name, (_, several) in CALLS.items() for one in several]
)
def test_what_cannot_be_computed_is_refused_in_one_line(name, wrong):
    with pytest.raises((TypeError, ValueError, training.TrainingError, RuntimeError)) as caught:
        CALLS[name][0](wrong)
    said, frame = str(caught.value), traceback.extract_tb(caught.value.__traceback__)[-1]
    own = Path(frame.filename).is_relative_to(HELPERS) and frame.line.startswith("raise")
    by_torch = name == "choose_precision"  # whose line names the argument
    assert (own or by_torch) and said and (by_torch or "\n" not in said), said


def test_labels_that_are_words_or_left_out_are_counted():
    labels = WINDOWS.clone()
    labels[:, 5:] = -100
    total, n_tokens = models.next_token_loss(MODEL, WINDOWS, labels, ONES)
    expected = models.token_losses(MODEL, WINDOWS)[:, :4]
    assert n_tokens == 24 and total.item() == pytest.approx(expected.sum().item(), rel=1e-6)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_settings_in_numpys_numbers_are_those_in_pythons(kind, tmp_path):
    plain = training.TrainSettings(2, 2.0**-10, 2, micro_batch=1, seed=3, warmup=1, clip=1.0)
    numpys = training.TrainSettings(
        kind(2),
        np.float32(2.0**-10),
        kind(2),
        micro_batch=kind(1),
        seed=kind(3),
        warmup=kind(1),
        clip=np.float32(1),
    )
    assert repr(numpys) == repr(plain)
    for settings in (plain, numpys):  # the second one goes on in the folder of the first
        training.fit(copy.deepcopy(MODEL), PLAN, WINDOWS, settings, folder=tmp_path, progress=False)


def test_a_wrapper_that_shares_work_out_is_refused_by_fit_and_read_by_the_others():
    wrapped = nn.DataParallel(copy.deepcopy(MODEL))
    with pytest.raises(training.TrainingError, match=r"wrapped in DataParallel\. Give the model inside"):
        training.fit(wrapped, PLAN, WINDOWS, training.TrainSettings(1, 1e-3, 2), progress=False)
    assert all(parameter.requires_grad for parameter in wrapped.parameters())
    base = copy.deepcopy(wrapped)
    for parameter in wrapped.parameters():
        parameter.data += 1.0
    with training.rewound(wrapped, base, 0.0):
        assert models.weight_hash(wrapped) == models.weight_hash(MODEL)
    assert str(costs.explain_cost(wrapped, PLAN, 2, 16)) == str(costs.explain_cost(MODEL, PLAN, 2, 16))
    models.enable_checkpointing(wrapped)
    assert any(getattr(module, "gradient_checkpointing", False) for module in wrapped.modules())


def test_a_bottom_under_a_hook_that_asks_for_gradients_is_refused_with_the_way_out():
    model = copy.deepcopy(MODEL)
    freezing.FreezePlan.freeze("first-half").apply(model)
    model.enable_input_require_grads()
    with pytest.raises(freezing.BottomError, match=r"a hook asks for it.*disable_input_require_grads"):
        freezing.find_bottom(model, WINDOWS[:2], 40)
    model.disable_input_require_grads()
    assert freezing.find_bottom(model, WINDOWS[:2], 40).n_blocks == 1
