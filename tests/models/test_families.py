"""Right or refused, in every family that can be built small: docs/families.md says what each one does."""

import copy

import pytest
import torch

from helpers.measuring import sample_windows
from helpers.models import ModelError, build_model, load_model
from publishing import families

ROWS = families.DOCUMENT.read_text(encoding="utf-8").splitlines()
OURS = ("loss", "KL", "main plan", "step", "delta", "LoRA")  # right or refused in every family
FAULTS = {"wrong", "failed", "proof fails", "refused in several lines"}
RARE = [name for name in sorted(families.FAMILIES) if name not in families.ALWAYS]


def check(name):
    found = families.row(name)
    assert not {found[column] for column in OURS} & FAULTS, found
    assert families.line(found) in ROWS, "docs/families.md is out of date: course families"


@pytest.mark.parametrize("name", families.ALWAYS)
def test_a_common_family_is_right_or_refused(name):
    check(name)


@pytest.mark.long
@pytest.mark.parametrize("name", RARE)
def test_a_rare_family_is_right_or_refused(name):
    """The complete matrix: about a second a family."""
    check(name)


def test_the_document_holds_these_families_and_no_other():
    rows = [line.split(" | ") for line in ROWS if line.startswith("| ")]
    listed = [cells[0].removeprefix("| ") for cells in rows if len(cells) == len(families.COLUMNS)]
    assert listed == [families.COLUMNS[0], "---", *sorted(families.FAMILIES)]
    assert len(families.FAMILIES) > 60
    assert "\n".join(ROWS).startswith(families.HEADING.rstrip())


def test_most_families_have_their_loss_computed_in_chunks():
    """A forward of transformers that changed its ways would silently cost the memory of all logits."""
    assert sum(" | in chunks | " in row for row in ROWS) > 60


def eager_error(name) -> float | None:
    """How far the family's eager logits lie from its fast ones, as a share of the largest; None: it has one kind."""
    fast = families.build(name)
    if families.kind_of_attention(fast) == "eager":
        return None
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)  # or all attention is nearly even
    eager = build_model(families.config_of(name), attention="eager").eval()
    eager.load_state_dict(fast.state_dict())
    with torch.no_grad():
        wanted, found = (model(input_ids=families.texts(2)).logits for model in (fast, eager))
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("name", families.ALWAYS)
def test_eager_attention_is_the_fast_one(name):
    error = eager_error(name)
    assert error is None or error < 1e-4


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(RARE) - {"falcon, alibi"}))
def test_eager_attention_is_the_fast_one_in_a_rare_family(name):
    error = eager_error(name)
    assert error is None or error < 1e-4


def test_falcons_eager_attention_with_alibi_is_another_and_is_refused(tmp_path):
    """Where this fails, transformers has mended it: take the refusal out of `load_model`, and the words out of the page."""
    assert eager_error("falcon, alibi") > 2e-4
    families.build("falcon, alibi").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="Load it with attention='fast'"):
        load_model(tmp_path, attention="eager")


SAMPLED = (
    "llama", "gpt_neo", "gpt2", "bloom", "gemma2", "mixtral", "mamba", "mamba2", "falcon_mamba", "rwkv",
    "recurrent_gemma", "jamba", "lfm2", "minimax", "qwen3_next", "nemotron_h",
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLED)
def test_a_sample_is_what_the_models_own_forward_gives(name):
    """Whatever state a family keeps between two tokens, the sample is that of whole texts read anew."""
    model, dice = families.build(name), torch.Generator().manual_seed(5)
    ids = families.texts(1)[:, :4].repeat(2, 1)
    again = copy.deepcopy(model)
    found = sample_windows(model, 2, 12, seed=5, start=ids[0])
    with torch.no_grad():
        while ids.size(1) < 12:
            probs = again(input_ids=ids, use_cache=False).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probs, 1, generator=dice)], dim=1)
    assert torch.equal(found, ids)


def test_a_wrong_loss_is_seen(monkeypatch):
    """The guard taken away, a family that scales its logits has another loss: the row says so."""
    monkeypatch.setattr("helpers.models.losses.plain_trunk", lambda model: model.base_model)
    assert families.cell(families.loss, families.build("cohere, scaled")) == "wrong"
    assert families.cell(families.loss, families.build("llama")) == "in chunks"
