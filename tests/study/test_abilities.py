"""What the kept models can still do: copying, and the base's own answers; each against a value known by hand."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers.models.loading import load_model, load_tokenizer
from helpers.profiles import TINY
from helpers.study import abilities
from helpers.study.abilities import PROMPTS, Reply, copying, drift_of_answers, passages, replies
from helpers.study.protocol import read_protocol
from helpers.study.second_study import PAGE, StudyError, jobs_of, open_study
from support import tiny

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


class Copier(nn.Module):
    """Sure of the token that follows the last earlier occurrence; without one, all tokens are equally likely."""

    def forward(self, ids):
        logits = torch.zeros(*ids.shape, 50)
        for row, tokens in enumerate(ids.tolist()):
            for at, token in enumerate(tokens):
                before = [i for i in range(at) if tokens[i] == token]
                if before:
                    logits[row, at, tokens[before[-1] + 1]] = 100.0
        return SimpleNamespace(logits=logits)


def test_who_copies_gains_the_whole_loss_and_who_does_not_gains_nothing():
    texts = torch.stack([torch.randperm(50)[:12] for _ in range(3)])  # no token twice in a passage
    assert copying(Copier(), texts).tolist() == pytest.approx([math.log(50)] * 3, abs=1e-5)

    class Unsure(nn.Module):
        def forward(self, ids):
            return SimpleNamespace(logits=torch.zeros(*ids.shape, 50))

    assert copying(Unsure(), texts).tolist() == pytest.approx([0.0] * 3)


def test_the_passages_are_whole_and_spread_over_the_text():
    tokenizer = load_tokenizer(TINY.model)
    found = passages(tokenizer)
    assert found.shape == (24, 100) and len({tuple(p) for p in found.tolist()}) == 24


@pytest.fixture
def talker(tmp_path):
    folder = tiny.saved(tmp_path)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    return load_model(folder, device="cpu").eval(), tokenizer


def test_an_answer_is_what_the_base_says_itself_after_its_template(talker):
    base, tokenizer = talker
    (reply,) = replies(base, tokenizer, PROMPTS[:1])
    assert tokenizer.decode(reply.ids[: reply.start]) == f"user: {PROMPTS[0]}\nassistant:"
    said = reply.ids[reply.start :]
    assert 1 <= len(said) <= 48
    for at, token in enumerate(said.tolist(), reply.start):
        assert base(reply.ids[None, :at]).logits[0, -1].argmax() == token, "greedy"


def test_the_drift_is_the_kl_divergence_on_the_answer_alone(talker):
    base, _ = talker
    ids, start = torch.arange(1, 13), 7
    assert drift_of_answers(base, base, [Reply(ids, start)]).tolist() == pytest.approx([0.0], abs=1e-6)
    other = moved(base)
    found = drift_of_answers(other, base, [Reply(ids, start)])
    p, q = (m(ids[None]).logits[0].double().softmax(-1) for m in (base, other))
    by_hand = (p * (p / q).log()).sum(-1)[6:11].mean()  # positions 6 to 10 predict tokens 7 to 11
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-4) and by_hand > 0


def moved(base):
    other = copy.deepcopy(base)
    with torch.no_grad():
        weight = other.transformer.h[1].mlp.c_proj.weight
        weight.add_(torch.randn_like(weight))
    return other


@pytest.mark.parametrize("n_kept", [0, 1])
def test_a_folder_that_lacks_a_recorded_change_takes_no_row_out_of_the_evidence(
    n_kept, tmp_path, monkeypatch
):
    """With an empty folder all rows were written over by none."""
    place = tmp_path / "abilities.json"
    place.write_bytes(abilities.EVIDENCE.read_bytes())
    study = open_study("tiny", read_protocol(PAGE), tmp_path / "study2")
    rows = json.loads(place.read_text("utf-8"))[study.model_name]["rows"]
    row, n = rows[0], len(rows)
    there = [job for job in jobs_of(study) if abilities.cell_of(job).items() <= row.items()][:n_kept]
    for job in there:
        study.delta_path(job).parent.mkdir(parents=True)
        study.delta_path(job).write_bytes(b"")
    monkeypatch.setattr(abilities, "measured", None)  # nothing is measured before the check
    with pytest.raises(
        StudyError, match=rf"keeps no change of .* {n - 2 * n_kept} of the {n} rows .* would be lost"
    ):
        abilities.record(["tiny"], tmp_path / "study2", place)
    assert place.read_bytes() == abilities.EVIDENCE.read_bytes()
    assert len(abilities.kept(study)) == n_kept


def test_a_folder_without_any_change_writes_no_evidence(tmp_path):
    with pytest.raises(StudyError, match="keeps no change of any run"):
        abilities.record(["tiny"], tmp_path / "study2", tmp_path / "abilities.json")
    assert not (tmp_path / "abilities.json").exists()
