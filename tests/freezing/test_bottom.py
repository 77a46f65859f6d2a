"""A frozen bottom is computed once: the same weights to the last bit, or refused with the reason."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from helpers.freezing.bottom import (
    BottomError,
    FrozenBlock,
    FrozenBottom,
    _states,
    find_bottom,
    frozen_blocks,
)
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


# --- what a bottom says, and its borders ---------------------------------------------


def ready(model: nn.Module, plan=HALF) -> nn.Module:
    plan.apply(model.train())
    return model


@pytest.mark.parametrize(
    "n_blocks, in_memory, words",
    [
        (1, True, "the first block is computed once for each window: 1,536.5 MiB kept in memory"),
        (2, False, "the first 2 blocks are computed once for each window: 1,536.5 MiB kept in a file"),
    ],
)
def test_a_bottom_says_how_many_blocks_and_how_much_it_keeps_where(n_blocks, in_memory, words):
    block = FrozenBlock(nn.Identity(), torch.float32, 4, 0)
    bottom = FrozenBottom([block] * n_blocks, 7, 1536 * 2**20 + 2**19, in_memory, None)
    assert str(bottom) == words
    assert (bottom.n_blocks, bottom.n_tokens, bottom.in_memory) == (n_blocks, 7, in_memory)


def test_up_to_one_gibibyte_is_kept_in_memory_unless_told():
    model = ready(neo())  # 32 numbers of 4 bytes a token
    bottom = find_bottom(model, WINDOWS[:2], 2**23)
    assert bottom.n_bytes == 2**30 and bottom.in_memory and bottom.n_tokens == 2**23
    words = r"takes 1,280 MiB, more than the limit of 1,024 MiB of memory\. Give a folder"
    with pytest.raises(BottomError, match=words):
        find_bottom(model, WINDOWS[:2], 10 * 2**20)
    assert find_bottom(model, WINDOWS[:2], 2, limit=256).in_memory
    with pytest.raises(BottomError, match="Give a folder"):
        find_bottom(model, WINDOWS[:2], 2, limit=255)


def test_a_quarter_of_a_gibibyte_of_the_disk_stays_free(tmp_path, monkeypatch):
    model, asked = ready(neo()), []
    free = {"bytes": 2**22 + 2**28}

    def usage(path):
        asked.append(path)
        return type("Usage", (), {"free": free["bytes"]})

    monkeypatch.setattr("shutil.disk_usage", usage)
    bottom = find_bottom(model, WINDOWS[:2], 2**15, limit=2**20, folder=tmp_path / "new" / "one")
    assert bottom.n_bytes == 2**22 and not bottom.in_memory
    assert asked == [tmp_path], "the nearest folder that is there"
    free["bytes"] -= 1
    words = r"takes 4 MiB, more than the limit of 1 MiB of memory, and the disk of '.*one' has 260 MiB free"
    with pytest.raises(BottomError, match=words):
        find_bottom(model, WINDOWS[:2], 2**15, limit=2**20, folder=str(tmp_path / "new" / "one"))


def test_what_stands_in_a_file_is_read_again(tmp_path):
    model = ready(neo())
    bottom = find_bottom(model, WINDOWS[:2], 2 * 16, limit=0, folder=tmp_path)
    with torch.no_grad():
        wanted = model(WINDOWS[:2]).logits
        for _ in range(2):
            with bottom.reading(WINDOWS[:2]):
                assert torch.equal(model(WINDOWS[:2]).logits, wanted)
    assert len(bottom._kept) == 2 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_places", [0, 1, 3])
def test_a_block_that_computes_nothing_gives_what_the_block_gave(n_places):
    states = torch.ones(1, 2, 4)
    out = FrozenBlock(nn.Identity(), torch.float32, 4, n_places).giving(states)("anything", mask=None)
    if n_places == 0:
        assert out is states
    else:
        assert out == (states, *[None] * (n_places - 1)) and out[0] is states


def test_a_frozen_block_has_type_width_and_places_of_its_output():
    (block,) = frozen_blocks(ready(neo().bfloat16()), WINDOWS[:1])
    out = block.module(torch.zeros(1, 2, 32, dtype=torch.bfloat16))
    n_places = len(out) if isinstance(out, tuple) else 0
    assert (block.dtype, block.width, block.n_places) == (torch.bfloat16, 32, n_places)


def test_states_of_another_type_than_the_kept_ones_are_not_kept():
    model = ready(neo())
    bottom = find_bottom(model, WINDOWS[:1], 2 * 16)
    with bottom.reading(WINDOWS[:1]):
        model(WINDOWS[:1])
    ((key, (row, _)),) = bottom._kept.items()
    before = row.clone()
    model.bfloat16()
    with bottom.reading(WINDOWS[:2]):
        model(WINDOWS[:2])
    assert torch.equal(bottom._kept[key][0], before) and bottom._kept[key][1] == 1


# --- refused, one by one ---------------------------------------------------------------


def test_dropout_of_the_embeddings_is_seen_on_one_window():
    with pytest.raises(BottomError, match="something before them is random"):
        find_bottom(ready(neo(embed_dropout=0.1)), WINDOWS[:1], 16)


class Twice(nn.Module):
    """A block that runs the one before it once more."""

    def __init__(self, block: nn.Module, before: nn.Module):
        super().__init__()
        self.block, self.before = block, [before]

    def forward(self, hidden, *args, **kwargs):
        self.before[0](hidden, *args, **kwargs)
        return self.block(hidden, *args, **kwargs)


def test_blocks_that_do_not_run_once_each_are_refused():
    model = neo()
    blocks = model.transformer.h
    blocks[1] = Twice(blocks[1], blocks[0])
    with pytest.raises(BottomError, match="do not run once each, one after the other"):
        find_bottom(ready(model), WINDOWS[:2], 32)


def test_a_block_that_gives_no_tensor_is_refused():
    with pytest.raises(BottomError, match="gives no tensor to the next one"):
        _states({"hidden": torch.ones(1)})
