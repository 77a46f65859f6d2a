"""A frozen bottom is computed once: the same weights to the last bit, or refused with the reason."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from helpers.freezing.bottom import BottomError, find_bottom, frozen_blocks
from helpers.freezing.plans import FreezePlan
from helpers.freezing.selectors import PlanError
from helpers.models.loading import build_model, enable_checkpointing, weight_hash
from helpers.training.loop import fit
from helpers.training.replay import Replay
from helpers.training.runs import TrainingError, TrainSettings
from publishing.families import config_of
from support import tiny

HALF = FreezePlan.freeze("embeddings", "layers:0")
WINDOWS = torch.randint(3, 97, (6, 16), generator=torch.Generator().manual_seed(0))
SETTINGS = TrainSettings(n_steps=6, rate=1e-2, batch=4, micro_batch=3)  # parts of 3 and of 1
NO_DROPOUT = (
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "dropout", "attention_dropout", "activation_dropout",
    "hidden_dropout", "residual_dropout",
)  # fmt: skip
FAMILIES = (
    "gpt_neo", "gpt2", "opt", "gpt_neox", "gptj", "llama", "llama, tied", "qwen2", "mistral", "gemma2", "falcon",
    "phi3", "cohere, scaled", "granite, scaled", "olmo2", "starcoder2", "mamba", "rwkv", "openai-gpt", "seed_oss",
)  # fmt: skip


def family(name: str, dropout: bool = False) -> nn.Module:
    config = config_of(name)
    for setting in () if dropout else NO_DROPOUT:
        if hasattr(config, setting):
            setattr(config, setting, 0.0)
    return build_model(config)


def neo(**changes) -> nn.Module:
    return build_model(tiny.config(**changes))


def trained(model, plan=HALF, settings=SETTINGS, windows=WINDOWS, **options):
    """A copy of the model, trained, and what the run says."""
    model = copy.deepcopy(model)
    return model, fit(model, plan, windows, settings, progress=False, **options)


def require_same(model, plan=HALF, settings=SETTINGS, cached=True, **options):
    """Train with the bottom computed in each step, and computed once; return the second run."""
    (plainly, before), (once, found) = (
        trained(model, plan, settings, cache_frozen=kept, **options) for kept in (False, cached)
    )
    assert found.bottom_size is not None and before.bottom_size is None
    assert weight_hash(once) == weight_hash(plainly) != weight_hash(model)
    assert found.history.steps == before.history.steps
    assert found.proof.ok
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_the_same_to_the_last_bit(name):
    require_same(family(name))


@pytest.mark.parametrize(
    "plan",
    [
        FreezePlan.freeze("embeddings", "layers:0-1"),  # the final norm alone trains
        FreezePlan.freeze("embeddings", "layers:0", "attention"),  # other frozen tensors above
        FreezePlan.only("biases@1"),
    ],
    ids=lambda plan: plan.slug,
)
def test_under_other_plans_with_a_frozen_bottom(plan):
    require_same(neo(), plan)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_with_a_replay_and_in_both_precisions(precision):
    model = neo()
    replay = Replay(model, WINDOWS.flip(1)[:5], batch=3)
    settings = TrainSettings(n_steps=6, rate=1e-2, batch=4, precision=precision)
    found = require_same(model, settings=settings, replay=replay)
    assert found.bottom_size.n_tokens == WINDOWS.numel() + 5 * 16


def test_with_checkpointing():
    model = neo()
    enable_checkpointing(model)
    require_same(model)


def test_lora_above_the_frozen_blocks():
    from helpers.freezing.lora import LORA_PLAN, insert

    model = build_model(tiny.config(num_layers=3, attention_types=[[["global"], 3]]))
    insert(model, "attention@2", rank=2, alpha=4)
    found = require_same(model, LORA_PLAN)
    assert "the first 2 blocks" in found.bottom


def test_a_known_window_skips_the_frozen_blocks_and_runs_the_others():
    model = neo().train()
    HALF.apply(model)
    calls = []
    for i, block in enumerate(model.transformer.h):
        block.mlp.register_forward_hook(lambda *args, i=i: calls.append(i))
    bottom = find_bottom(model, WINDOWS[:2], WINDOWS.numel())
    calls.clear()
    for _ in range(2):
        with bottom.reading(WINDOWS[:2]):
            model(WINDOWS[:2])
    assert calls == [0, 1, 1]
    with bottom.reading(WINDOWS[:1]):  # another number of windows: another product of matrices
        model(WINDOWS[:1])
    model(WINDOWS[:1])  # outside the bottom the model is as it was
    assert calls == [0, 1, 1, 0, 1, 0, 1]


def test_no_more_is_kept_than_was_said():
    model = neo().train()
    HALF.apply(model)
    bottom = find_bottom(model, WINDOWS[:1], 3 * 16)
    assert bottom.n_bytes == 3 * 16 * 32 * 4
    with torch.no_grad():
        wanted = [model(window[None]).logits for window in WINDOWS]
        for _ in range(2):
            for window, logits in zip(WINDOWS, wanted, strict=True):
                with bottom.reading(window[None]):
                    assert torch.equal(model(window[None]).logits, logits)
    assert sum(row.nbytes for row, _ in bottom._kept.values()) == bottom.n_bytes


def test_beyond_the_limit_a_file_holds_it_and_none_is_left(tmp_path):
    plainly, _ = trained(neo(), folder=tmp_path / "plainly")
    model, found = trained(neo(), folder=tmp_path / "once", cache_frozen=True, cache_limit=0)
    assert "in a file" in found.bottom and not found.bottom_size.in_memory
    assert weight_hash(model) == weight_hash(plainly)
    left = [{path.name for path in (tmp_path / name).rglob("*")} for name in ("once", "plainly")]
    assert left[0] == left[1]


def test_beyond_the_limit_it_is_refused_without_a_folder_or_a_disk(tmp_path, monkeypatch):
    with pytest.raises(BottomError, match="Give a folder"):
        trained(neo(), cache_frozen=True, cache_limit=100)
    assert (
        "Give a folder"
        in trained(neo(), cache_frozen="auto", cache_limit=100, folder=tmp_path / "a")[1].bottom
    )
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    with pytest.raises(BottomError, match="1 MiB free"):
        trained(neo(), cache_frozen=True, cache_limit=100, folder=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_run_that_goes_on_gives_the_same_weights(tmp_path):
    whole, _ = trained(neo(), settings=TrainSettings(n_steps=8, rate=1e-2, batch=4))
    for n_steps in (3, 8):
        settings = TrainSettings(n_steps=n_steps, rate=1e-2, batch=4)
        model, _ = trained(neo(), settings=settings, folder=tmp_path / "run", cache_frozen=True)
    assert weight_hash(model) == weight_hash(whole)


# --- refused -----------------------------------------------------------------------


class Remembering(nn.Module):
    """A block that hands something to the last one behind the model's back."""

    def __init__(self, block: nn.Module, notes: dict, reads: bool):
        super().__init__()
        self.block, self.notes, self.reads = block, notes, reads

    def forward(self, hidden, *args, **kwargs):
        if self.reads:
            hidden = hidden + self.notes["first"]
        else:
            self.notes["first"] = 0.1 * hidden
        return self.block(hidden, *args, **kwargs)


def with_notes() -> nn.Module:
    model, notes = neo(), {}
    for i, block in enumerate(model.transformer.h):
        model.transformer.h[i] = Remembering(block, notes, reads=i == 1)
    return model


REFUSED = {
    "dropout": (lambda: family("gpt2", dropout=True), HALF, "Block 0 draws random numbers"),
    "dropout of the embeddings": (lambda: neo(embed_dropout=0.1), HALF, "something before them is random"),
    "no frozen block": (neo, FreezePlan.freeze("attention"), r"transformer\.wte\.weight trains"),
    "embeddings train": (neo, FreezePlan.freeze("layers:0"), r"transformer\.wte\.weight trains"),
    "norms train": (neo, FreezePlan.only("norms"), r"transformer\.h\.0\.ln_1\.weight trains"),
    "a norm of the embeddings": (lambda: family("bloom"), HALF, "word_embeddings_layernorm.weight trains"),
    "experts": (lambda: family("mixtral"), HALF, "depend on its neighbours"),
    "a way round": (with_notes, HALF, "need more of the frozen ones"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_computed_once_is_refused_with_the_reason(why):
    build, plan, words = REFUSED[why]
    model = build().train()
    plan.apply(model)
    before = torch.get_rng_state()
    with pytest.raises(BottomError, match=words) as error:
        find_bottom(model, WINDOWS[:3], WINDOWS.numel())
    assert len(str(error.value).splitlines()) == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_auto_goes_on_without_and_says_why():
    model, found = trained(neo(), FreezePlan.freeze("attention"), cache_frozen="auto")
    assert found.bottom_size is None and "wte.weight trains" in found.bottom
    assert weight_hash(model) == weight_hash(trained(neo(), FreezePlan.freeze("attention"))[0])


def test_auto_keeps_nothing_where_no_window_is_read_twice():
    short = TrainSettings(n_steps=2, rate=1e-2, batch=4)
    assert "no window is read twice" in trained(neo(), settings=short, cache_frozen="auto")[1].bottom
    assert trained(neo(), cache_frozen="auto")[1].bottom_size is not None


def test_another_answer_is_refused():
    with pytest.raises(TrainingError, match="'always'"):
        trained(neo(), cache_frozen="always")


def test_a_plan_that_trains_nothing_is_no_bottom():
    with pytest.raises(PlanError):
        trained(neo(), FreezePlan.freeze("embeddings", "layers:0-1", "norms"), cache_frozen=True)


def test_the_frozen_blocks_are_those_whose_output_needs_no_gradient():
    config = AutoConfig.for_model(
        "gpt_neo", **tiny.SHAPE | {"num_layers": 3, "attention_types": [[["global"], 3]]}
    )
    model = build_model(config)
    FreezePlan.only("layers:2").apply(model)
    assert [block.module for block in frozen_blocks(model, WINDOWS[:1])] == list(model.transformer.h[:2])
