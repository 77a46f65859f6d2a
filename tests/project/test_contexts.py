"""What the caller has switched on, or does in another thread, changes no result; and what is called leaves no trace."""

import copy
import random
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import AutoConfig, masking_utils
from transformers.integrations import moe

from helpers import costs, freezing, measuring, models, training
from support import tiny

CONFIG = tiny.config(vocab_size=60)
MODEL = models.build_model(CONFIG, seed=1)
WINDOWS = torch.randint(1, 60, (6, 20), generator=torch.Generator().manual_seed(0))
PLAN = freezing.FreezePlan.freeze("attention", "embeddings")
HALF = freezing.FreezePlan.freeze("first-half")


def with_lora() -> torch.nn.Module:
    model = copy.deepcopy(MODEL)
    freezing.insert(model, "attention", 2, 4.0, 3)
    for layer in freezing.layers_of(model).values():
        layer.lora_B.data += 0.3
    return model


LORA = with_lora()


def inserted(model) -> dict:
    freezing.insert(model, "attention", 2, 4.0, 3)
    return model.state_dict()


def merged(model) -> dict:
    model = copy.deepcopy(LORA)
    freezing.merge(model)
    return model.state_dict()


def bottom(model) -> tuple:
    HALF.apply(model)
    found = freezing.find_bottom(model, WINDOWS[:2], 40)
    for _ in range(2):  # noted, then read
        with found.reading(WINDOWS[:2]):
            models.next_token_loss(model, WINDOWS[:2])
    return found.n_blocks, found.n_bytes


def budget(plan=PLAN, **settings) -> tuple:
    found = costs.budget(CONFIG, plan, 2, 16, **settings)
    return found.bytes, found.at_peak, found.flops.step


def rewound(model) -> dict:
    tuned = copy.deepcopy(LORA)
    freezing.unload(tuned)
    with training.rewound(tuned, model, 0.4):
        return {name: tensor.clone() for name, tensor in tuned.state_dict().items()}


CALLS = {
    "anatomy": lambda model: str(models.anatomy(model)),
    "base_record": lambda model: str(training.base_record(model)),
    "budget": lambda model: budget(),
    "budget of a bottom": lambda model: budget(HALF, bottom=costs.BottomSize(40)),
    "budget of a replay": lambda model: budget(replay=costs.ReplaySize(4, 2, 16)),
    "budget of kept predictions": lambda model: budget(replay=costs.ReplaySize(4, 2, 16, True)),
    "budget on real numbers": lambda model: budget(on_shapes=False),
    "build_model": lambda model: models.build_model(CONFIG, seed=4).state_dict(),
    "find_bottom": bottom,
    "insert": inserted,
    "merge": merged,
    "rewound": rewound,
    "snapshot": lambda model: freezing.snapshot(model).hashes,
    "token_losses": lambda model: models.token_losses(model, WINDOWS),
    "weight_hash": models.weight_hash,
}
EXPECTED = {name: call(copy.deepcopy(MODEL)) for name, call in CALLS.items()}


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CONTEXTS = {
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "inference_mode": torch.inference_mode,
    "meta": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
}
OTHERWISE = {
    ("autocast", "token_losses")
}  # a loss is computed in the caller's precision, as training asks for it


def require_same(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            require_same(found[name], value)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # type and device as well
    else:
        assert found == expected


@pytest.mark.parametrize(
    "context, name",
    [(context, name) for context in CONTEXTS for name in CALLS if (context, name) not in OTHERWISE],
)
def test_what_the_caller_has_switched_on_changes_no_result(context, name):
    model = copy.deepcopy(MODEL)
    with CONTEXTS[context]():
        found = CALLS[name](model)
    require_same(found, EXPECTED[name])


@pytest.mark.parametrize("is_on", [True, False])
def test_a_run_in_bfloat16_inside_an_autocast_computes_with_the_weights_of_each_step(is_on):
    def losses() -> list[float]:
        settings = training.TrainSettings(6, 1e-2, 4, precision="bfloat16", warmup=0)
        result = training.fit(copy.deepcopy(MODEL), PLAN, WINDOWS, settings, progress=False)
        return [step["loss"] for step in result.history.steps]

    expected = losses()
    assert expected[-1] < expected[0] - 0.1  # with the copies of the first step it would hardly fall
    with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
        assert losses() == expected


def test_a_replay_is_read_in_the_bases_own_precision():
    expected = training.Replay(MODEL, WINDOWS).kept
    with torch.autocast("cpu", torch.bfloat16):
        require_same(training.Replay(MODEL, WINDOWS).kept, expected)


def global_state() -> dict:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "warnings": list(warnings.filters),
        "gradients": torch.is_grad_enabled(),
        "replaced": (masking_utils.find_packed_sequence_indices, moe._grouped_mm),
    }


@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_no_state_behind(name):
    model = copy.deepcopy(MODEL).train()
    before = global_state()
    CALLS[name](model)
    assert global_state() == before
    assert model.training and not any("forward" in vars(module) for module in model.modules())


# --- threads -------------------------------------------------------------------------


@pytest.fixture
def many_switches():
    """Threads take turns every few instructions, so that a race is lost at once."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize(
    "name", ["budget", "build_model", "find_bottom", "insert", "token_losses", "base_record"]
)
def test_threads_get_the_result_of_one(name, many_switches):
    before = global_state()["replaced"]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: CALLS[name](copy.deepcopy(MODEL)), range(8)):
            require_same(found, EXPECTED[name])
    assert global_state()["replaced"] == before


def test_threads_that_read_with_one_model_get_its_losses(many_switches):
    def replay(_):
        return training.Replay(MODEL, WINDOWS).kept

    expected = measuring.log_probabilities(MODEL, WINDOWS).detach()
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(replay, range(24)):
            require_same(found, expected)


def test_a_budget_in_one_thread_leaves_the_experts_of_a_model_in_another_alone(many_switches):
    config = AutoConfig.for_model("mixtral", **tiny.FAMILIES["mixtral"])
    model = models.build_model(config).eval()
    expected = models.token_losses(model, WINDOWS[:2, :8])
    with ThreadPoolExecutor(1) as pool:
        budgets = pool.submit(lambda: [budget() for _ in range(3)])
        while not budgets.done():
            require_same(models.token_losses(model, WINDOWS[:2, :8]), expected)
    assert budgets.result()[0] == EXPECTED["budget"]
