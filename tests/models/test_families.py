"""Right or refused, in every family that can be built small: docs/families.md says what each one does."""

import copy

import pytest
import torch

from helpers.measuring import sample_windows
from publishing import families

ROWS = families.DOCUMENT.read_text(encoding="utf-8").splitlines()
OURS = ("loss", "KL", "main plan", "step", "delta", "LoRA")  # right or refused in every family
FAULTS = {"wrong", "failed", "proof fails", "refused in several lines"}
RARE = [name for name in sorted(families.FAMILIES) if name not in families.ALWAYS]


def check(name):
    found = families.row(name)
    assert not {found[column] for column in OURS} & FAULTS, found
    assert families.line(found) in ROWS, "docs/families.md is out of date: python -m publishing.families"


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
