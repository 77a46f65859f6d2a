"""What else a tuned model kept: two abilities of the base, measured on the changes that the second study keeps.

    course study abilities          writes data/evidence/abilities.json

Forgetting is how far a model drifts on pages that its base wrote. These two ask for something that the base can do:

- *copying*: how much easier a passage is when it comes a second time, nats per token;
- *answers*, of a base with a chat template: KL divergence from the base on its own greedy answers to short prompts,
  on the tokens of the answers alone, nats per token.

The study keeps the change of one run for each plan, rate and text. So a number here is one run's, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from helpers.files import counted, write_json
from helpers.models import load_model, load_tokenizer, weight_hash
from helpers.profiles import DATA, build_dir
from helpers.session import machine_class
from helpers.study.protocol import read_protocol
from helpers.study.records import read_record
from helpers.study.second_study import PAGE, Job, Study, StudyError, jobs_of, open_study
from helpers.training import load_delta

EVIDENCE = DATA / "evidence" / "abilities.json"
PASSAGES, PASSAGE_LENGTH = 24, 100  # of plain_tales.txt, which no run trains on
ANSWER_LENGTH = 48  # tokens, at most
SHARES = (0.4, 1.0)  # of the change: rewound, and not
DIGITS = 5
KEYS = ("plan", "rate", "weight", "text", "seed")  # of a run
PROMPTS = (
    "What is a river?",
    "Name three animals that live in the sea.",
    "Why is the sky dark at night?",
    "How do I boil an egg?",
    "Write one sentence about a lamp.",
    "What is the capital of France?",
    "Give me a short list of things to take on a walk.",
    "What does a baker do?",
    "Explain what a seed needs to grow.",
    "How many days are in a week?",
    "What is the opposite of cold?",
    "Tell me how to greet a new neighbour.",
    "What is seven plus five?",
    "Name a fruit that is yellow.",
    "Why do people sleep?",
    "How can I learn ten new words a day?",
    "What is a library for?",
    "Write a friendly note to a teacher.",
    "What happens when ice gets warm?",
    "Which month comes after March?",
    "How do birds stay in the air?",
    "What should I do when it rains?",
    "Give one reason to drink water.",
    "What is a map?",
    "Say in one sentence what music is.",
    "How do I tie a knot?",
    "What is the largest ocean?",
    "Why do leaves fall in autumn?",
    "What is a good name for a small dog?",
    "How do I ask for help politely?",
    "What can you make with flour and milk?",
    "What is the difference between a lake and a sea?",
)


class Reply(NamedTuple):
    """A prompt with the base's answer: token ids (time,), and where the answer begins."""

    ids: torch.Tensor
    start: int


# --- copying -----------------------------------------------------------------------


def passages(tokenizer) -> torch.Tensor:
    """Passages of ordinary prose, evenly spaced, as token ids: (passages, time)."""
    text = (DATA / "plain_tales.txt").read_text("utf-8")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    whole = ids[: len(ids) // PASSAGE_LENGTH * PASSAGE_LENGTH].view(-1, PASSAGE_LENGTH)
    return whole[torch.linspace(0, len(whole) - 1, PASSAGES).long()]


@torch.no_grad()
def copying(model: nn.Module, passages: torch.Tensor) -> torch.Tensor:
    """By how much the loss of each passage falls when it comes again: (passages,), nats per token.

    Both readings are judged on the same tokens: all of the passage but its first.
    """
    length = passages.shape[1]
    twice = torch.cat([passages, passages], 1)  # (passages, 2 · time)
    logits = model(twice).logits[:, :-1].float()
    losses = cross_entropy(logits.transpose(1, 2), twice[:, 1:], reduction="none")  # (passages, 2 · time - 1)
    return losses[:, : length - 1].mean(1) - losses[:, length:].mean(1)


# --- answers -----------------------------------------------------------------------


@torch.no_grad()
def replies(base: nn.Module, tokenizer, prompts: Sequence[str] = PROMPTS) -> list[Reply]:
    """The base's greedy answers in its own chat template."""
    found = []
    for prompt in prompts:
        words = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        asked = tokenizer(words, add_special_tokens=False, return_tensors="pt")["input_ids"]
        end = tokenizer.eos_token_id
        ids = base.generate(asked, do_sample=False, max_new_tokens=ANSWER_LENGTH, pad_token_id=end)
        found.append(Reply(ids[0], asked.shape[1]))
    return found


@torch.no_grad()
def drift_of_answers(model: nn.Module, base: nn.Module, replies: Sequence[Reply]) -> torch.Tensor:
    """KL divergence from the base on the tokens of its answers: (prompts,), nats per token."""
    return torch.stack([_drift(model, base, reply) for reply in replies])


def _drift(model: nn.Module, base: nn.Module, reply: Reply) -> torch.Tensor:
    # (answer, vocab)
    log_p, log_q = (
        m(reply.ids[None]).logits[0, reply.start - 1 : -1].float().log_softmax(-1) for m in (base, model)
    )
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


# --- over the study ----------------------------------------------------------------


def record(sections: Sequence[str], folder: Path | None = None, place: Path = EVIDENCE) -> None:
    """Measure every kept change of these bases, and write the evidence; other bases' rows stay.

    Args:
        sections: of the protocol, e.g. "tiny".
        folder: where the second study wrote; None: ``build/study2``.

    Raises:
        StudyError: the folder keeps no change, or lacks one that the evidence has a row of; nothing is written then.
    """
    known = read_record(place) if place.exists() else {}
    for section in sections:
        study = open_study(section, read_protocol(PAGE), folder or build_dir() / "study2")
        _require_changes(study, known.get(study.model_name, {}).get("rows", []))
        known[study.model_name] = measured(study)
        write_json(place, known)
        print(f"{study.model_name}: {counted(len(known[study.model_name]['rows']), 'row')} in {place.name}")


def kept(study: Study) -> list[Job]:
    """The jobs whose change the study keeps."""
    return [job for job in jobs_of(study) if study.delta_path(job).exists()]


def cell_of(job: Job) -> dict:
    return {name: getattr(job, name) for name in KEYS}


def _require_changes(study: Study, rows: Sequence[dict]) -> None:
    """Raise StudyError unless the study keeps a change, and all those that these rows were measured on."""
    cells = [cell_of(job) for job in kept(study)]
    lost = [row for row in rows if {name: row[name] for name in KEYS} not in cells]
    if lost or not cells:
        words = ", ".join(str(lost[0][name]) for name in KEYS) if lost else "any run"
        raise StudyError(
            f"The folder '{study.folder}' keeps no change of {words}: {len(lost)} of the {len(rows)} rows that are "
            f"recorded of {study.model_name} would be lost. Give the --folder in which the second study wrote."
        )


def measured(study: Study) -> dict:
    """The abilities of a base and of each kept change, rewound and not."""
    base, tokenizer = load_model(study.model, device="cpu").eval(), load_tokenizer(study.model)
    texts = passages(tokenizer)
    asked = replies(base, tokenizer) if tokenizer.chat_template else []

    def abilities(model: nn.Module) -> dict:
        found = {"copying": round(copying(model, texts).mean().item(), DIGITS)}
        if asked:
            found["answers"] = round(drift_of_answers(model, base, asked).mean().item(), DIGITS)
        return found

    rows = []
    for job in kept(study):
        for share in SHARES:
            model = load_delta(study.delta_path(job), base, share=share).eval()
            rows.append({**cell_of(job), "share": share, **abilities(model)})
    return {
        "model_hash": weight_hash(base),
        "machine": machine_class(),
        "base": abilities(base),
        "rows": rows,
    }
