"""What works in which family of decoders: build each one small, try everything, write docs/families.md.

    course families                 all rows, about two minutes
    course families llama mamba     print these rows alone

A cell says what the code did, whatever it should do: "yes", "refused" (an error of the course, one
line, nothing changed), "failed" (another error), or "wrong" (a result that is not the model's own).
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig

from helpers.costs import BudgetError, budget
from helpers.freezing import FreezePlan, LoraError, PlanError, insert
from helpers.measuring import Retention
from helpers.models import (
    AnatomyError,
    LossError,
    ModelError,
    anatomy,
    build_model,
    load_model,
    next_token_loss,
    plain_trunk,
    require_next_token_model,
    token_losses,
)
from helpers.training import (
    DeltaError,
    TrainingError,
    TrainSettings,
    base_record,
    fit,
    load_delta,
    save_delta,
)

DOCUMENT = Path(__file__).parents[1] / "docs" / "families.md"
REFUSALS = (AnatomyError, BudgetError, DeltaError, LoraError, LossError, ModelError, PlanError, TrainingError)
FAILURES = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
MAIN = FreezePlan.freeze("attention", "embeddings")
COLUMNS = (
    "family",
    "attention",
    "loads",
    "roles",
    "loss",
    "KL",
    "main plan",
    "step",
    "delta",
    "budget",
    "LoRA",
)

CLOSE = 1e-5  # relative: of losses, gradients and KL to the model's own

SHAPE = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    num_experts=4,
    num_local_experts=4,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
)
_MLA = dict(
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    qk_head_dim=16,
    v_head_dim=16,
    head_dim=8,
)
_BART = dict(
    d_model=32,
    decoder_layers=1,
    encoder_layers=1,
    decoder_attention_heads=2,
    encoder_attention_heads=2,
    decoder_ffn_dim=64,
    encoder_ffn_dim=64,
    is_decoder=True,
    is_encoder_decoder=False,
)
_LINEAR = dict(
    layer_types=["linear_attention", "full_attention"],
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
)

# name -> (model_type, what differs from SHAPE). Families that cannot be one without more say so here.
FAMILIES: dict[str, tuple[str, dict]] = {
    name: (name, {})
    for name in """
afmoe apertus arcee aria_text axk2 beam biogpt bitnet bloom cohere cohere2 cohere2_moe ctrl cwm deepseek_v2
deepseek_v4 diffllama doge ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_mamba flex_olmo flint
gemma gemma2 gemma3_text gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neox
gpt_neox_japanese gpt_oss granite granite_swa granitemoe granitemoe_swa granitemoeshared helium hrm_text
hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax inkling_text internlm3 iquestcoder jais2 jetmoe kolibri1
laguna lfm2 llama llama4_text mamba mellum minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral
ministral3 mistral mixtral modernbert-decoder moshi mpt nanochat nemotron nemotron_h olmo olmo2 olmo3
olmo_hybrid olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe rwkv seed_oss
smollm3 solar_open stablelm starcoder2 vaultgemma xglm bert cpmant prophetnet roberta trocr xlm xlnet
""".split()
}
FAMILIES |= {
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False}),
    "cohere, scaled": ("cohere", {"logit_scale": 0.0625}),
    "granite, scaled": ("granite", {"logits_scaling": 8.0}),
    "gemma2, not capped": ("gemma2", {"final_logit_softcapping": None}),
    "gemma3_text, capped": ("gemma3_text", {"final_logit_softcapping": 5.0}),
    "mixtral, router loss": ("mixtral", {"output_router_logits": True}),
    "bert, decoder": ("bert", {"is_decoder": True}),
    "roberta, decoder": ("roberta", {"is_decoder": True}),
    "electra, decoder": ("electra", {"is_decoder": True, "embedding_size": 16}),
    "bart": ("bart", _BART),
    "pegasus": ("pegasus", _BART),
    "marian": ("marian", _BART | {"decoder_vocab_size": 97}),
    "deepseek_v3": ("deepseek_v3", _MLA | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}),
    "youtu": ("youtu", _MLA),
    "stablelm, a norm a head": ("stablelm", {"qk_layernorm": True}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]]}),
    "falcon, alibi": ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False}),
    "gptj": ("gptj", {"rotary_dim": 8}),
    "codegen": ("codegen", {"num_attention_heads": 4, "rotary_dim": 4}),
    "mamba2": ("mamba2", {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8}),
    "qwen3_next": ("qwen3_next", _LINEAR),
    "recurrent_gemma": ("recurrent_gemma", {"num_hidden_layers": 3, "lru_width": 32}),
    "rwkv, rescaled": ("rwkv", {"num_hidden_layers": 5, "rescale_every": 2}),
    "jamba": ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}),
}
ALWAYS = (
    "gpt_neo",
    "gpt2",
    "llama",
    "llama, tied",
    "cohere, scaled",
    "gemma2",
    "granite, scaled",
    "mixtral",
    "mixtral, router loss",
    "opt",
    "mamba",
    "bert",
)


class WrongResult(Exception):
    """A result that is not the model's own."""


def config_of(name: str):
    """The family's config in `SHAPE`; a size of another name is found in its ``attribute_map``."""
    model_type, changes = FAMILIES[name]
    usual = AutoConfig.for_model(model_type)
    own_name = getattr(usual, "attribute_map", {})
    known = {*usual.to_dict(), "vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}
    shape = {own_name.get(k, k): v for k, v in SHAPE.items() if own_name.get(k, k) in known}
    return AutoConfig.for_model(model_type, **_other_ids(usual, known), **shape | changes)


def _other_ids(usual, known) -> dict[str, int]:
    """Ids of a family's own marks (decoder start, separator, …) outside the small vocabulary: the end instead."""
    ids = {
        name: usual.to_dict().get(name) for name in known if name.endswith("_token_id") and name not in SHAPE
    }
    return {
        name: SHAPE["eos_token_id"] for name, value in ids.items() if isinstance(value, int) and value >= 97
    }


def build(name: str) -> nn.Module:
    """The family's model with a head so large that its logits differ by nats: no scale or cap is unseen.

    Fast attention where the family has it, else eager.
    """
    try:
        model = build_model(config_of(name))
    except ValueError:
        model = build_model(config_of(name), attention="eager")
    model.eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3 / model(input_ids=texts(1)).logits.std())
    return model


def texts(n_windows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 97, (n_windows, 16), generator=torch.Generator().manual_seed(seed))


# --- the columns -------------------------------------------------------------------


def loads(model: nn.Module) -> str:
    """Saved and loaded again, the model computes what it did."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        again = load_model(folder, attention=kind_of_attention(model), device="cpu").eval()
        _require_close(again(input_ids=texts(1)).logits, model(input_ids=texts(1)).logits)
    return "yes"


def kind_of_attention(model: nn.Module) -> str:
    return "eager" if model.config._attn_implementation == "eager" else "fast"


def roles(model: nn.Module) -> str:
    anatomy(model)
    return "yes"


def loss(model: nn.Module) -> str:
    """Value and every gradient are those of the model's own loss, and so is the mean of the single tokens."""
    ids = texts(2)
    require_next_token_model(model, ids[:1])
    own, wanted = _with_gradients(model, lambda: model(input_ids=ids, labels=ids, use_cache=False).loss)
    ours, found = _with_gradients(model, lambda: torch.div(*next_token_loss(model, ids)))
    _require_close(ours, own)
    _require_close(token_losses(model, ids).mean(), own)
    _require(found.keys() == wanted.keys())
    largest = max(g.abs().max() for g in wanted.values())
    for name, gradient in found.items():
        _require((gradient - wanted[name]).abs().max() <= CLOSE * largest)
    return "own logits" if plain_trunk(model) is None else "in chunks"


def kl(model: nn.Module) -> str:
    """Forgetting is the KL divergence of the logits that the two models' own forward gives."""
    windows, tuned = texts(2), copy.deepcopy(model)
    with torch.no_grad():
        for p in tuned.parameters():
            p.mul_(1.2)
        p, q = (F.log_softmax(m(input_ids=windows).logits[:, :-1].double(), -1) for m in (model, tuned))
    wanted = (p.exp() * (p - q)).sum(-1).mean().item()
    _require(wanted > 0.001)  # the two models must differ, or nothing is tried
    _require(abs(Retention(model, windows).forgetting(tuned).mean - wanted) <= CLOSE * max(0.1, wanted))
    return "yes"


def plan(model: nn.Module) -> str:
    """What the main plan (attention and embeddings fixed) leaves to the head."""
    MAIN.apply(model)
    weight = getattr(model.get_output_embeddings(), "weight", None)
    return "no head" if weight is None else "head trains" if weight.requires_grad else "head fixed"


def step(model: nn.Module) -> str:
    """One step of `fit` under the main plan, with its proof."""
    result = fit(model, MAIN, texts(4), TrainSettings(n_steps=1, rate=1e-3, batch=2), progress=False)
    return "yes" if result.proof.ok else "proof fails"


def delta(model: nn.Module) -> str:
    """What was trained, saved as a delta and laid over the base again, gives the tuned model."""
    base, tuned = copy.deepcopy(model), model
    fit(tuned, MAIN, texts(4), TrainSettings(n_steps=1, rate=1e-3, batch=2), progress=False)
    with tempfile.TemporaryDirectory() as folder:
        save_delta(tuned, MAIN, base_record(base), folder)
        again = load_delta(folder, base)
    _require(all(torch.equal(p, again.get_parameter(n)) for n, p in tuned.named_parameters()))
    return "yes"


def predicted(model: nn.Module) -> str:
    # A refusal says it in one line; the library's log would say it in thirty.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    budget(model.config, MAIN, 2, 16, attention=kind_of_attention(model))
    return "yes"


def lora(model: nn.Module) -> str:
    """LoRA beside the attention matrices: inserted, it changes no logits."""
    with torch.no_grad():
        before = model(input_ids=texts(1)).logits
        insert(model, "attention", rank=2, alpha=4)
        _require_close(model(input_ids=texts(1)).logits, before)
    return "yes"


CHECKS: dict[str, Callable[[nn.Module], str]] = {
    "loads": loads,
    "roles": roles,
    "loss": loss,
    "KL": kl,
    "main plan": plan,
    "step": step,
    "delta": delta,
    "budget": predicted,
    "LoRA": lora,
}


def row(name: str) -> dict[str, str]:
    """One family through all columns; each check has a model of its own."""
    model = build(name)
    cells = {"family": name, "attention": kind_of_attention(model)}
    return cells | {column: cell(check, copy.deepcopy(model)) for column, check in CHECKS.items()}


def cell(check: Callable[[nn.Module], str], model: nn.Module) -> str:
    try:
        return check(model)
    except REFUSALS as error:
        _say(model, check, error)
        return "refused" if len(str(error).splitlines()) == 1 else "refused in several lines"
    except WrongResult:
        return "wrong"
    except FAILURES as error:
        _say(model, check, error)
        return "failed"


def _say(model: nn.Module, check: Callable, error: Exception) -> None:
    """Why a cell is no "yes", on stderr: a refusal must be a true one."""
    print(f"{model.config.model_type}, {check.__name__}: {type(error).__name__}: {error}", file=sys.stderr)


def _with_gradients(model: nn.Module, loss_of: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, dict]:
    model.zero_grad()
    value = loss_of()
    value.backward()
    return value.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _require_close(found: torch.Tensor, wanted: torch.Tensor, close: float = CLOSE) -> None:
    _require((found - wanted).abs().max() <= close * wanted.abs().max())


def _require(is_so) -> None:
    """Raise WrongResult where it is not so. No ``assert``: Python -O leaves those out, and nothing would be wrong."""
    if not is_so:
        raise WrongResult


# --- the document ------------------------------------------------------------------

HEADING = """# What works in which family

Made by `course families`; do not edit by hand. Families of the installed transformers that can
be built small are built with random weights, and everything is tried. `tests/models/test_families.py` compares
each row.

- "yes": it works, and the result is the model's own.
- "refused": an error of the course, in one line.
- "failed": another error, which is a fault of the course.
- "wrong": a result that is not the model's own.

| column | what is tried |
| --- | --- |
| attention | "fast" where the family has PyTorch's fused attention, else "eager"; where both exist, they agree |
| loads | saved, loaded with `load_model`: the same logits |
| roles | `anatomy` finds a role for each tensor; attention's is that of Mamba's and other mixers too |
| loss | value and all gradients of `next_token_loss`, and `token_losses`, to 1e-5 of the model's own loss |
| KL | `Retention.forgetting`, to 1e-5 of the KL from the model's own logits, in nats |
| main plan | attention and embeddings fixed: does the head train? A tied head is the token embedding |
| step | one step of `fit`, and its proof |
| delta | what was trained, saved and laid over the base again |
| budget | memory and FLOPs, predicted from the config |
| LoRA | beside the attention matrices: the logits stay |

Budget "yes" says that a step can be run on shapes alone; tests/costs/test_budget.py measures for some families that
the number is right. In a mixture of experts the groups of tokens together are all tokens, whatever the router says.

Loss "in chunks": the logits are never all in memory. Loss "own logits": the family does more with its
logits than one product, so its own forward makes them all.

A term that a family adds to its own loss is no part of the course's loss: with `output_router_logits=True`
or a `z_loss_coefficient` a model is refused in training. An encoder, which sees the token that it should
predict, is refused as well, and so is a model whose own loss is another. The eager attention of Falcon with ALiBi adds
the positions' bias twice in this transformers: `load_model(..., attention="eager")` refuses it, and the fast kind is right.

"""


def line(cells: dict[str, str]) -> str:
    return f"| {' | '.join(cells[column] for column in COLUMNS)} |"


def document(rows: list[dict[str, str]]) -> str:
    table = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}", *map(line, rows)]
    return HEADING + "\n".join(table) + "\n"
