"""The chunked loss equals the plain one, in value and in every gradient."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import (
    AdaptionPromptConfig,
    CPTConfig,
    IA3Config,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    RwkvConfig,
)

from helpers.freezing import FreezePlan
from helpers.freezing.lora import insert
from helpers.measuring import Retention, held_out_loss, sample_windows
from helpers.models import losses
from helpers.models.loading import (
    build_model,
    build_on_meta,
    enable_checkpointing,
    load_model,
    weight_hash,
)
from helpers.models.losses import (
    IGNORE,
    LossError,
    next_token_loss,
    require_next_token_model,
    shifted_labels,
    token_losses,
)
from helpers.training import FreezeGuard, TrainingError, TrainSettings, fit
from support import tiny

MINI = tiny.config(hidden_size=48, intermediate_size=96, max_position_embeddings=40)
FAMILIES = {
    "gpt_neo": MINI,
    "llama_untied": LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    ),
    "gpt2": GPT2Config(
        vocab_size=97,
        n_embd=32,
        n_layer=1,
        n_head=4,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    ),
    "opt": OPTConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=1,
        ffn_dim=64,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        dropout=0,
    ),
}


def ids_of(batch=3, length=20, seed=0):
    return torch.randint(1, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def plain_loss(model, ids, mask=None):
    logits = model(ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    return F.cross_entropy(
        logits.reshape(-1, logits.size(-1)),
        shifted_labels(ids, None, mask).reshape(-1),
        ignore_index=IGNORE,
        reduction="sum",
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_value_and_gradients_equal_the_plain_loss(family, chunk, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    model, ids = build_model(FAMILIES[family]).double(), ids_of()
    total, n_tokens = next_token_loss(model, ids)
    total.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    expected = plain_loss(model, ids)
    expected.backward()
    assert n_tokens == 3 * 19
    assert torch.allclose(total, expected, rtol=1e-10)
    for name, p in model.named_parameters():
        assert torch.allclose(ours[name], p.grad, rtol=1e-8, atol=1e-12), name


def test_a_frozen_head_gets_no_gradient_and_still_passes_it_on():
    model, ids = build_model(MINI), ids_of()
    model.transformer.wte.weight.requires_grad_(False)
    next_token_loss(model, ids)[0].backward()
    assert model.transformer.wte.weight.grad is None
    assert model.transformer.h[0].mlp.c_fc.weight.grad.abs().sum() > 0


def test_the_loss_of_a_text_depends_neither_on_padding_nor_on_its_neighbours():
    model, ids = build_model(MINI).eval(), ids_of(2, 30)
    mask = torch.ones_like(ids)
    mask[0, 18:] = 0
    both, n = next_token_loss(model, ids, attention_mask=mask)
    short, n_short = next_token_loss(model, ids[:1, :18])
    long, n_long = next_token_loss(model, ids[1:])
    assert n == n_short + n_long == 17 + 29
    assert torch.allclose(both, short + long, rtol=1e-5)


def test_labels_of_minus_100_are_not_counted():
    model, ids = build_model(MINI), ids_of(1, 10)
    labels = ids.clone()
    labels[0, :6] = IGNORE
    assert next_token_loss(model, ids, labels)[1] == 4


def test_sums_of_micro_batches_give_the_gradient_of_one_batch():
    model, ids = build_model(MINI).double(), ids_of(4, 12)
    total, n = next_token_loss(model, ids)
    (total / n).backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for part in ids.split(1):
        (next_token_loss(model, part)[0] / n).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(whole[name], p.grad, rtol=1e-9, atol=1e-14), name


def test_bfloat16_autocast_comes_close_and_keeps_float32_gradients():
    model, ids = build_model(MINI), ids_of()
    exact = next_token_loss(model, ids)[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = next_token_loss(model, ids)
    total.backward()
    assert total.item() == pytest.approx(exact, rel=0.01)
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_token_losses_average_to_the_loss():
    model, ids = build_model(MINI).eval(), ids_of()
    total, n = next_token_loss(model, ids)
    assert token_losses(model, ids).shape == (3, 19)
    assert token_losses(model, ids).mean().item() == pytest.approx(total.item() / n, rel=1e-5)


# --- equal to the model's own loss, or refused ---------------------------------------


def small_llama(**changes):
    return build_model(
        LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=64,
            **changes,
        )
    ).eval()


def assert_equals_its_own(model, ids):
    """Value and gradients of `next_token_loss`, and the mean of `token_losses`."""
    model.zero_grad()
    own = model(input_ids=ids, labels=ids, use_cache=False).loss
    own.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total, n_tokens = next_token_loss(model, ids)
    (total / n_tokens).backward()
    assert total.item() / n_tokens == pytest.approx(own.item(), rel=1e-5)
    assert token_losses(model, ids).mean().item() == pytest.approx(own.item(), rel=1e-5)
    assert wanted.keys() == {n for n, p in model.named_parameters() if p.grad is not None}
    for name, gradient in wanted.items():
        assert torch.allclose(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6), name


def test_the_chunked_way_is_taken_where_the_logits_are_one_product():
    for name, config in FAMILIES.items():
        assert losses.plain_trunk(build_model(config)) is not None, name


def test_an_adapter_in_the_head_is_part_of_the_loss():
    model = small_llama()
    assert insert(model, "head", rank=3, alpha=6) == ["lm_head"]
    nn.init.normal_(model.lm_head.lora_B)
    assert losses.plain_trunk(model) is None
    assert_equals_its_own(model, ids_of())
    assert model.lm_head.lora_B.grad.abs().sum() > 0


def test_an_adapter_of_peft_in_the_head_is_part_of_the_loss():
    twin = get_peft_model(
        small_llama(), LoraConfig(r=3, target_modules=["lm_head"], init_lora_weights=False)
    ).eval()
    assert_equals_its_own(twin, ids_of())
    assert_equals_its_own(twin.base_model.model, ids_of())


@pytest.mark.parametrize("place", ["", "model", "lm_head"])
def test_a_hook_that_changes_the_logits_is_part_of_the_loss_from_its_first_step_to_its_last(place):
    model, ids = small_llama(), ids_of()
    usual = next_token_loss(model, ids)[0].item()

    def tripled(module, args, output):
        if isinstance(output, torch.Tensor):
            return output * 3
        output[0].mul_(3)
        return output

    hook = model.get_submodule(place).register_forward_hook(tripled)
    assert next_token_loss(model, ids)[0].item() != pytest.approx(usual, rel=1e-4)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        assert next_token_loss(model, ids)[0].item() == pytest.approx(
            F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum").item(), rel=1e-5
        )
    hook.remove()
    assert next_token_loss(model, ids)[0].item() == usual


def test_asking_for_the_trunk_runs_no_block_and_leaves_the_model_as_it_was():
    model, seen = small_llama(), []
    model.model.layers[0].register_forward_hook(lambda *args: seen.append(1))
    before, state = dict(vars(model)), torch.get_rng_state()
    assert losses.plain_trunk(model) is model.model
    assert not seen
    assert vars(model) == before and not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_scale_that_comes_later_is_seen():
    model, ids = (
        build_model(
            CohereConfig(
                vocab_size=97,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                logit_scale=0.25,
            )
        ),
        ids_of(),
    )
    assert_equals_its_own(model.eval(), ids)
    model.logit_scale = 4.0
    assert_equals_its_own(model, ids)


@pytest.mark.parametrize(
    "config",
    [
        CohereConfig(
            vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
        ),
        LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
        ),
    ],
    ids=["own logits", "in chunks"],
)
def test_both_ways_agree_under_padding_checkpointing_autocast_and_bfloat16(config):
    model, ids = build_model(config), ids_of(2, 12)
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    padded, n = next_token_loss(model, ids, attention_mask=mask)
    alone = sum(next_token_loss(model, ids[i : i + 1, :length])[0] for i, length in enumerate((7, 12)))
    assert n == 6 + 11 and padded.item() == pytest.approx(alone.item(), rel=1e-5)
    exact = next_token_loss(model, ids)[0]
    enable_checkpointing(model)
    assert next_token_loss(model, ids)[0].item() == pytest.approx(exact.item(), rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        total = next_token_loss(model, ids)[0]
    total.backward()
    assert total.item() == pytest.approx(exact.item(), rel=0.01)
    assert all(p.grad.abs().sum() > 0 and p.grad.dtype == torch.float32 for p in model.parameters())
    assert next_token_loss(model.bfloat16(), ids)[0].item() == pytest.approx(exact.item(), rel=0.01)


def test_padding_before_a_text_is_refused():
    model, ids = small_llama(), ids_of(2, 8)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with pytest.raises(LossError, match="Pad on the right"):
        next_token_loss(model, ids, attention_mask=mask)


def test_a_router_loss_is_refused_in_one_line():
    model = build_model(
        MixtralConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            output_router_logits=True,
        )
    )
    with pytest.raises(LossError, match=r"output_router_logits is True.* = False first\.$"):
        next_token_loss(model, ids_of())
    model.config.output_router_logits = False
    assert_equals_its_own(model.eval(), ids_of())


@pytest.mark.parametrize("measure", [next_token_loss, token_losses])
def test_a_model_that_answers_with_a_tuple_is_refused_in_one_line(measure):
    model = small_llama()
    model.config.return_dict = False  # its own forward then asks a tuple for its last states
    with pytest.raises(LossError, match=r"Set model\.config\.return_dict = True first\.$"):
        measure(model, ids_of())


def rwkv_that_divides():
    config = RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=5, rescale_every=2)
    return config, AutoModelForCausalLM.from_config(config).eval()


def test_a_model_whose_forward_changes_its_weights_is_refused():
    _, model = rwkv_that_divides()
    before = weight_hash(model)
    for measure in (next_token_loss, token_losses):
        with pytest.raises(LossError, match="divides its own weights"):
            measure(model, ids_of())
    assert weight_hash(model) == before


def test_a_model_that_would_change_its_weights_is_loaded_and_built_as_one_that_does_not(tmp_path):
    config, plain = rwkv_that_divides()
    plain.save_pretrained(tmp_path)
    for model in (load_model(tmp_path, device="cpu"), build_model(config)):
        before = weight_hash(model)
        model.train()(input_ids=ids_of())
        assert token_losses(model.eval(), ids_of()).sum().item() == pytest.approx(
            plain_loss(model, ids_of()).item()
        )
        assert weight_hash(model) == before
    assert config.rescale_every == 2, "the caller's config is the caller's"
    ids = ids_of()
    with torch.no_grad():
        wanted, found = plain(input_ids=ids).logits, load_model(tmp_path, device="cpu")(input_ids=ids).logits
    assert (wanted - found).abs().max() < 1e-2 * wanted.abs().max(), "the same but for a norm's epsilon"


def test_an_encoder_and_another_loss_are_refused():
    small = dict(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    ids = ids_of(1, 12)
    with pytest.raises(LossError, match="sees later tokens"):
        require_next_token_model(build_model(BertConfig(**small)).eval(), ids)
    require_next_token_model(build_model(BertConfig(**small, is_decoder=True)).eval(), ids)
    model = small_llama()
    require_next_token_model(model, ids)
    model.loss_function = lambda logits, labels, **_: F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    with pytest.raises(LossError, match="is not the next-token loss"):
        require_next_token_model(model, ids)
    with pytest.raises(LossError, match="cannot be run on these token ids"):
        require_next_token_model(small_llama(), ids + 97)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_chunked_divergence_is_the_plain_one_in_value_and_in_every_gradient(family):
    """Logits far from normalised: a head ten times as large."""
    model = build_model(FAMILIES[family]).double()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
    ids = torch.randint(97, (3, 12), generator=torch.Generator().manual_seed(1))
    log_p = torch.log_softmax(
        torch.randn(33, 97, generator=torch.Generator().manual_seed(2)).double() * 3, -1
    )
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    plain = F.kl_div(torch.log_softmax(logits, -1), log_p, log_target=True, reduction="sum")
    names = [n for n, _ in model.named_parameters()]
    wanted = torch.autograd.grad(plain, list(model.parameters()))
    found = losses.divergence_loss(model, ids, losses.base_predictions(log_p.clone()))
    assert found.item() == pytest.approx(plain.item(), rel=1e-10)
    for name, a, b in zip(names, torch.autograd.grad(found, list(model.parameters())), wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10), name


@pytest.mark.parametrize(
    "config", [MINI, GPT2Config(vocab_size=97, n_embd=16, n_layer=1, n_head=2, n_positions=40)]
)
def test_windows_longer_than_the_positions_are_refused_before_the_model_reads_them(config):
    model, windows = build_model(config), torch.zeros(1, 41, dtype=torch.long)
    assert losses.next_token_loss(model, windows[:, :40])[1] == 39
    for read in (losses.next_token_loss, losses.token_losses):
        with pytest.raises(losses.LossError, match="41 tokens are longer than the model has positions .40."):
            read(model, windows)


def test_rotary_positions_have_no_last_one():
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = build_model(LlamaConfig(vocab_size=97, max_position_embeddings=8, **shape))
    windows = torch.arange(12)[None]
    loss, n_tokens = losses.next_token_loss(model, windows)
    assert loss.item() / n_tokens == pytest.approx(
        model(input_ids=windows, labels=windows).loss.item(), abs=1e-5
    )


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
PLAIN = {"rope_type": "default", "rope_theta": 100.0}
STRETCHING = {
    "llama": {"rope_parameters": DYNAMIC, "hidden_size": 16},
    "gemma3_text": {
        "rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": PLAIN},
        "layer_types": ["full_attention", "sliding_attention"],
    },
}


@pytest.mark.parametrize("kind", STRETCHING)
def test_positions_that_stretch_to_the_longest_text_read_are_right_or_refused(kind):
    """transformers goes back to the model's own positions at a text below the limit, and not at the limit itself."""
    model = build_model(tiny.family(kind, max_position_embeddings=8, **STRETCHING[kind]).config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # so that positions matter
    windows = torch.randint(3, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    fresh = {n: own_losses(copy.deepcopy(model), windows[:, :n]) for n in (6, 8)}
    for before in (16, 5, 12):
        with torch.no_grad():
            model(input_ids=windows[:, :before])
        for n in (8, 6, 8):  # 6 takes the stretch back
            try:
                found = losses.token_losses(model, windows[:, :n])
            except LossError as error:
                assert n == 8 < before and "rope_type 'dynamic'" in str(error)
                assert not torch.allclose(own_losses(model, windows[:, :n]), fresh[n], atol=1e-4)
            else:
                assert torch.allclose(found, fresh[n], atol=1e-5)
    for read in (token_losses, next_token_loss, held_out_loss, Retention):
        with pytest.raises(LossError, match="Windows of 9 tokens: .* longest text that it has read"):
            read(model, windows[:, :9])


def own_losses(model, ids):
    """The loss of each token by the model's own forward: (batch, time - 1)."""
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


LEARNED = {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
PROMPTS = {
    "PROMPT_TUNING": PromptTuningConfig(**LEARNED),
    "P_TUNING": PromptEncoderConfig(**LEARNED),
    "PREFIX_TUNING": PrefixTuningConfig(**LEARNED),
    "MULTITASK_PROMPT_TUNING": MultitaskPromptTuningConfig(num_tasks=1, **LEARNED),
    "CPT": CPTConfig(
        cpt_token_ids=[1, 2], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2], task_type="CAUSAL_LM"
    ),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_a_learned_prompt_is_refused_by_name_before_anything_is_measured_or_written(kind, tmp_path):
    model = get_peft_model(build_model(FAMILIES["llama_untied"]), PROMPTS[kind])
    base = build_model(FAMILIES["llama_untied"])
    kept = Retention(base, ids_of())
    tries = [
        lambda: losses.next_token_loss(model, ids_of()),
        lambda: losses.token_losses(model, ids_of()),
        lambda: held_out_loss(model, ids_of()),
        lambda: sample_windows(model, 1, 8, 0),
        lambda: Retention(model, ids_of()),
        lambda: kept.forgetting(model),
        lambda: losses.require_next_token_model(model, ids_of(1)),
        lambda: FreezeGuard(model, FreezePlan.full(), retention=kept, delta=tmp_path / "run"),
        lambda: fit(
            model,
            FreezePlan.full(),
            ids_of(),
            TrainSettings(n_steps=1, rate=1e-3, batch=2),
            folder=tmp_path / "run",
        ),
    ]
    for attempt in tries:
        with pytest.raises(
            (losses.LossError, TrainingError), match=f"^This model has a {kind} adapter of PEFT"
        ) as refused:
            attempt()
        assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "adapter",
    [
        AdaptionPromptConfig(adapter_len=4, adapter_layers=1, task_type="CAUSAL_LM"),
        IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    ],
)
def test_an_adapter_of_peft_that_leaves_the_text_alone_has_the_models_own_loss(adapter):
    model = get_peft_model(build_model(FAMILIES["llama_untied"]), adapter).eval()
    loss, n_tokens = losses.next_token_loss(model, ids_of())
    own = model(input_ids=ids_of(), labels=ids_of()).loss
    assert loss.item() / n_tokens == pytest.approx(own.item(), abs=1e-5)


def test_a_forward_that_gives_other_than_one_prediction_a_token_is_refused():
    class Longer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def get_output_embeddings(self):
            return self.inner.get_output_embeddings()

        def forward(self, input_ids, attention_mask=None, use_cache=False):
            return self.inner(input_ids=torch.cat([input_ids[:, :2], input_ids], 1), use_cache=False)

    with pytest.raises(losses.LossError, match="gives 22 predictions for 20 tokens"):
        losses.token_losses(Longer(build_model(FAMILIES["llama_untied"])), ids_of())


@pytest.mark.parametrize("ids", [[[3, 4, 5]], torch.ones(1, 8), torch.ones(8).long()])
def test_what_is_no_batch_of_token_ids_is_no_fault_of_the_model(ids):
    with pytest.raises(LossError, match="^The windows must"):
        require_next_token_model(build_model(tiny.config(), seed=0), ids)


def test_under_inference_mode_the_losses_are_the_same():
    model, ids = build_model(tiny.config(), seed=0), torch.randint(97, (3, 12))
    with torch.inference_mode():
        inside = token_losses(model, ids), next_token_loss(model, ids)[0]
    assert torch.equal(inside[0], token_losses(model, ids))
    assert torch.equal(inside[1], next_token_loss(model, ids)[0])


@pytest.mark.parametrize("loss", [token_losses, next_token_loss])
def test_a_model_without_numbers_has_no_loss(loss):
    with pytest.raises(ValueError, match="is on the meta device: it has a shape and no values"):
        loss(build_on_meta(tiny.config()), torch.randint(97, (3, 12)))
