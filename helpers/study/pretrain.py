"""Train the miniature GPT-Neo from plain text files.

    course pretrain BOOKS... --out RUN --steps 8000
    course pretrain BOOKS... --out RUN --steps 8000 --export data/gpt-neo-mini

A file is one book, or many: `name.txt` (or `.txt.xz`) with `name.manifest.json`
beside it, a list of {"title", "year", "offset", "bytes"}. Stopped at any moment,
the same command goes on where it was: the data order and the learning rate are
functions of the step alone, all else is in the checkpoint. The step count may be
changed until the decay begins. A finished run can be taken further with the rate
raised again, as in WSD-S (Wen et al. 2024, "Understanding warmup-stable-decay"):

    course pretrain BOOKS... --out RUN --steps 14000 --again-from 8000
"""

from __future__ import annotations

import json
import lzma
import math
import random
import shutil
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from helpers.files import file_hash, read_json, write_json
from helpers.models import build_model, mini_config, next_token_loss, token_losses, weight_hash
from helpers.training import (
    Checkpoint,
    TrainSettings,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)

LENGTH = 256  # tokens a window
SEGMENT = 5 * LENGTH  # tokens held out in one piece
END = "<|endoftext|>"
TOKENS, SOURCES = "tokens.npz", "texts.json"
HALF_MADE = {
    "tokenizer",
    SOURCES,
    "books.json",
    "tokens.partial.npz",
}  # what a kill while they are made can leave
OF_A_RUN = (
    "batch",
    "rate",
    "warmup",
    "decay",
    "seed",
    "bfloat16",
)  # what one run keeps from its first step on


# --- text --------------------------------------------------------------------------


def read_books(paths: list[Path]) -> list[dict]:
    """Each book as {"title", "year", "text"}, cut by the manifest where there is one."""
    books = []
    for path in paths:
        try:
            raw = lzma.open(path).read() if path.suffix == ".xz" else path.read_bytes()
            manifest = path.parent / (path.name.split(".")[0] + ".manifest.json")
            whole = [{"title": path.stem, "year": "", "offset": 0, "bytes": len(raw)}]
            for entry in read_json(manifest, list) if manifest.exists() else whole:
                text = raw[entry["offset"] : entry["offset"] + entry["bytes"]].decode("utf-8")
                rest = {name: entry.get(name, "") for name in ("year", "author")}
                books.append({"title": entry["title"], **rest, "text": text})
        except (OSError, EOFError, lzma.LZMAError, ValueError, TypeError, KeyError) as error:
            raise SystemExit(
                f"Cannot read the book '{path}' ({type(error).__name__}: {error}). Give plain UTF-8 texts, or .txt.xz, "
                "each with a manifest that fits it, or without one."
            ) from error
    return books


def train_tokenizer(books: list[dict], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's: every text can be written, no token is unknown."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator((book["text"] for book in books), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, unk_token=END, model_max_length=LENGTH
    )


def encode(tokenizer, books: list[dict], seed: int, n_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """All books in a shuffled order as one stream; evenly spaced segments are held out.

    Returns:
        (train, held_out): uint16 tokens; held_out is (n_held_out, SEGMENT).
    """
    order = list(books)
    random.Random(seed).shuffle(order)
    pieces = tokenizer.backend_tokenizer.encode_batch([b["text"] + END for b in order])
    stream = np.concatenate([np.array(p.ids, dtype=np.uint16) for p in pieces])
    stride = len(stream) // n_held_out
    if stride < 2 * SEGMENT:
        raise SystemExit(
            f"The text has {len(stream):,} tokens: too few to hold out {n_held_out} segments "
            f"of {SEGMENT}. Give more text, or a smaller --held-out."
        )
    starts = [i * stride + (stride - SEGMENT) // 2 for i in range(n_held_out)]
    held_out = np.stack([stream[s : s + SEGMENT] for s in starts])
    kept = np.ones(len(stream), dtype=bool)
    for s in starts:
        kept[s : s + SEGMENT] = False
    return stream[kept], held_out


def batch_of(train: np.ndarray, step: int, batch: int, seed: int) -> torch.Tensor:
    """The windows of one step: (batch, LENGTH). A function of the step, so a resume needs no state."""
    n_windows = (len(train) - LENGTH) // LENGTH
    per_epoch = n_windows // batch
    epoch, index = divmod(step, per_epoch)
    rng = np.random.default_rng([seed, epoch])
    shift = int(rng.integers(LENGTH))  # other window borders in each epoch
    rows = rng.permutation(n_windows)[index * batch : (index + 1) * batch] * LENGTH + shift
    return torch.from_numpy(np.stack([train[r : r + LENGTH] for r in rows]).astype(np.int64))


# --- optimisation ------------------------------------------------------------------


def rate_share(step: int, n_steps: int, warmup: int, decay: float) -> float:
    """Share of the peak rate in one cycle: linear warm-up, constant, linear decay to 1% over the last part."""
    start = (1 - decay) * n_steps
    if step < warmup:
        return (step + 1) / warmup
    if step < start:
        return 1.0
    return 1 - 0.99 * (step - start) / (n_steps - start)


def build_optimizers(model, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks; AdamW for embeddings, biases and LayerNorms."""
    inner = [p for n, p in model.named_parameters() if ".h." in n and p.ndim == 2]
    tables = [p for n, p in model.named_parameters() if ".h." not in n and p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": tables, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(inner, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True),
    ]


def held_out_loss(model, held_out: np.ndarray) -> float:
    """Mean loss over all held-out windows of LENGTH tokens, in nats per token."""
    windows = torch.from_numpy(held_out.reshape(-1, LENGTH).astype(np.int64))
    model.eval()
    losses = [token_losses(model, part).mean(1) for part in windows.split(16)]
    model.train()
    return torch.cat(losses).mean().item()


# --- the run -----------------------------------------------------------------------


def train(args) -> None:
    """Train, or go on; checkpoint every --save-every minutes; log one line every 20 steps.

    Raises:
        SystemExit, TrainingError: a word that cannot be, other texts or settings than those of the run that the folder
            holds, or a folder of something else; nothing is written then.
    """
    out = Path(args.out)
    check(args, out)
    tokens = prepare(args, out)
    train_tokens, held_out = tokens["train"], tokens["held_out"]
    if args.batch > (len(train_tokens) - LENGTH) // LENGTH:
        raise SystemExit(f"The text has fewer windows of {LENGTH} tokens than a --batch of {args.batch}.")
    model = build_model(mini_config(), seed=args.seed)
    optimizers = build_optimizers(model, args.rate)
    names = {p: n for n, p in model.named_parameters()}
    first = resume(out, model, optimizers, names)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(train_tokens):,} tokens, "
        f"steps {first:,} to {args.steps:,}",
        flush=True,
    )
    recipe = {k: getattr(args, k) for k in (*OF_A_RUN, "steps", "again_from")}
    began = saved = time.monotonic()
    running = None
    for step in range(first, args.steps):
        share = rate_share(step - args.again_from, args.steps - args.again_from, args.warmup, args.decay)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.rate * share
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            total, n = next_token_loss(model, batch_of(train_tokens, step, args.batch, args.seed))
        (total / n).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        loss = total.item() / n
        running = loss if running is None else 0.95 * running + 0.05 * loss
        done, now = step + 1, time.monotonic()
        if done % 20 == 0:
            speed = (done - first) * args.batch * LENGTH / (now - began)
            left = (args.steps - done) * args.batch * LENGTH / speed / 60
            log(
                out,
                {
                    "step": done,
                    "loss": round(running, 4),
                    "rate": round(args.rate * share, 6),
                    "tokens_per_second": round(speed),
                    "minutes_left": round(left, 1),
                },
            )
        if done % args.evaluate_every == 0 or done == args.steps:
            log(out, {"step": done, "held_out_loss": round(held_out_loss(model, held_out), 4)})
        if now - saved > 60 * args.save_every or done == args.steps:
            save(out, done, model, optimizers, names, recipe)
            saved = now


def check(args, out: Path) -> None:
    """Refuse a word that cannot be, and a folder that is none of this run. Nothing is written."""
    TrainSettings(
        args.steps, args.rate, args.batch, None, args.seed, args.warmup, evaluate_every=args.evaluate_every
    )
    for name, value, is_one, wanted in (
        ("--held-out", args.held_out, args.held_out >= 1, "1 segment or more"),
        ("--decay", args.decay, 0 <= args.decay <= 1, "from 0 to 1"),
        ("--save-every", args.save_every, 0 <= args.save_every < math.inf, "0 minutes or more"),
        ("--again-from", args.again_from, 0 <= args.again_from <= args.steps, "from 0 to --steps"),
    ):
        if not is_one:
            raise SystemExit(f"{name} must be {wanted}; found {value:g}.")
    if out.exists() and not out.is_dir():
        raise SystemExit(f"The run folder '{out}' is a file. Choose another name.")
    inside = {path.name for path in out.iterdir() if path.name[0] != "."} if out.exists() else set()
    if TOKENS not in inside and inside - HALF_MADE:
        raise SystemExit(
            f"The folder '{out}' is not empty and holds no run of this command. Choose a new folder."
        )
    if (out / SOURCES).exists() and read_json(out / SOURCES, list) != hashes_of(args.texts):
        raise SystemExit(f"The folder '{out}' holds a run on other books. Choose a new folder.")
    _check_step(args, out, load_checkpoint(out) if TOKENS in inside else None)


def _check_step(args, out: Path, checkpoint: Checkpoint | None) -> None:
    """Refuse to go on from a checkpoint that is another run's, or that stands too early to be taken further."""
    first = checkpoint.step if checkpoint else 0
    if first < args.again_from:
        raise SystemExit(
            f"--again-from {args.again_from} takes a finished run further, but '{out}' stands at step "
            f"{first}. Finish it first: the same command with --steps {args.again_from}, without "
            "--again-from."
        )
    before = checkpoint.state.get("recipe", {}) if checkpoint else {}
    unlike = [
        f"{name} {before[name]!r} there, {getattr(args, name)!r} here"
        for name in OF_A_RUN
        if name in before and before[name] != getattr(args, name)
    ]
    if unlike and not args.again_from:
        raise SystemExit(f"The folder '{out}' holds another run ({'; '.join(unlike)}). Choose a new folder.")


def hashes_of(texts: list[str]) -> list[str]:
    """The SHA-256 of each file of books."""
    try:
        return [file_hash(path) for path in texts]
    except OSError as error:
        raise SystemExit(f"Cannot read a book: {error}. Give plain UTF-8 texts, or .txt.xz.") from error


def prepare(args, out: Path):
    """Tokenizer and token streams, made once and kept in the run folder."""
    if not (out / TOKENS).exists():
        books = read_books([Path(p) for p in args.texts])
        tokenizer = train_tokenizer(books, mini_config().vocab_size)
        train_tokens, held_out = encode(tokenizer, books, args.seed, args.held_out)
        out.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(out / "tokenizer")
        write_json(out / SOURCES, hashes_of(args.texts))
        write_json(out / "books.json", [{k: b[k] for k in ("title", "author", "year")} for b in books])
        np.savez(out / "tokens.partial.npz", train=train_tokens, held_out=held_out)
        (out / "tokens.partial.npz").rename(out / TOKENS)
    try:
        tokens = np.load(out / TOKENS)
        same = len(tokens["held_out"]) == args.held_out and len(tokens["train"]) > 0
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise SystemExit(
            f"'{out / TOKENS}' is damaged ({error}). Delete it, and give the same command again."
        ) from error
    if not same:
        raise SystemExit(f"The folder '{out}' holds a run with another --held-out. Choose a new folder.")
    return tokens


def resume(out: Path, model, optimizers, names) -> int:
    """Restore the newest intact checkpoint and return its step; 0 where there is none."""
    checkpoint = load_checkpoint(out)
    if checkpoint is None:
        return 0
    for line in checkpoint.damaged:
        print(f"{line}; using the one before it", file=sys.stderr)
    put_weights(model, checkpoint, out)
    for i, optimizer in enumerate(optimizers):
        part = {n[2:]: t for n, t in checkpoint.tensors.items() if n.startswith(f"{i}/")}
        restore_optimizer(optimizer, names, part)
    return checkpoint.step


def put_weights(model, checkpoint: Checkpoint, out: Path) -> None:
    """Put a checkpoint's weights into the model, all of them or none.

    Raises:
        SystemExit: they are not this model's.
    """
    found = {n[len("model/") :]: t for n, t in checkpoint.tensors.items() if n.startswith("model/")}
    wanted = dict(model.named_parameters())
    odd = sorted(
        n
        for n in found.keys() | wanted.keys()
        if n not in found or n not in wanted or found[n].shape != wanted[n].shape
    )
    if odd:
        raise SystemExit(
            f"Step {checkpoint.step} in '{out}' is of another model: {odd[0]} does not fit. "
            "Choose a new folder."
        )
    model.load_state_dict(found, strict=False)


def save(out: Path, step: int, model, optimizers, names, recipe: dict) -> None:
    tensors = {f"model/{n}": p for n, p in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        tensors |= {f"{i}/{n}": t for n, t in optimizer_tensors(optimizer, names).items()}
    save_checkpoint(out, step, tensors, {"recipe": recipe})


def log(out: Path, entry: dict) -> None:
    print("  ".join(f"{k} {v}" for k, v in entry.items()), flush=True)
    with open(out / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def require_target(target: Path) -> None:
    """Refuse a place that holds something else than an earlier export: it is not overwritten."""
    if target.exists() and not target.is_dir():
        raise SystemExit(f"'{target}' is a file, and no folder for a model. Choose another name.")
    if target.exists() and any(target.iterdir()) and not (target / "training.json").exists():
        raise SystemExit(
            f"The folder '{target}' is not empty and holds no export of this command. Choose a new folder."
        )


def export(run: Path, target: Path) -> None:
    """Write the newest checkpoint in the Hugging Face format: float16 on disk, float32 when loaded."""
    model = build_model(mini_config())
    checkpoint = load_checkpoint(run)
    if checkpoint is None:
        raise SystemExit(f"There is no checkpoint in '{run}'. Train first.")
    put_weights(model, checkpoint, run)
    model.half().save_pretrained(target)
    PreTrainedTokenizerFast.from_pretrained(run / "tokenizer").save_pretrained(target)
    shutil.copy(run / "log.jsonl", target / "training_log.jsonl")
    config = json.loads((target / "config.json").read_text("utf-8"))
    config["dtype"] = "float32"  # what from_pretrained makes of the float16 file
    write_json(target / "config.json", config)
    tokens = np.load(run / TOKENS)
    loss, text = held_out_loss(model.float(), tokens["held_out"]), tokens["held_out"].reshape(-1, LENGTH)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run / "tokenizer")
    n_characters = sum(len(tokenizer.decode(row[1:].tolist())) for row in text)
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    report = {
        "steps": checkpoint.step,
        "recipe": checkpoint.state.get("recipe", {}),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_train_tokens": len(tokens["train"]),
        "weight_hash": weight_hash(model),
        "file_sha256": file_hash(target / "model.safetensors"),
        "held_out_loss": round(loss, 4),
        "held_out_windows": len(text),
        "bits_a_character": round(loss / math.log(2) * text[:, 1:].size / n_characters, 4),
        "held_out_history": [[e["step"], e["held_out_loss"]] for e in steps if "held_out_loss" in e],
        "books": json.loads((run / "books.json").read_text("utf-8")),
    }
    write_json(target / "training.json", report)
    (target / "README.md").write_text(model_card(report), encoding="utf-8")
    print(json.dumps({k: v for k, v in report.items() if k != "books"}, indent=1))


def model_card(report: dict) -> str:
    """What the miniature is, what made it, and what it is not good for."""
    recipe = report["recipe"]
    n_tokens = report["steps"] * recipe.get("batch", 16) * LENGTH
    began = recipe.get("again_from", 0)
    rest = report["steps"] - began
    again = f"; twice: once over {began:,} steps, then again over the other {rest:,}" if began else ""
    books = "\n".join(f"- {b['title']} ({b['author']}, {b['year']})" for b in report["books"])
    return f"""---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---

# A miniature GPT-Neo

{report["n_parameters"]:,} parameters: 4 layers (global, local, global, local attention; window 64), width 192, 6 heads,
context 256, vocabulary 4,096 (byte-level BPE), tied head, `gelu_pytorch_tanh`. Its shares by role are close to those
of GPT-Neo 125M. float16 on disk, float32 when loaded.

```python
from transformers import GPTNeoForCausalLM
model = GPTNeoForCausalLM.from_pretrained("data/gpt-neo-mini")
```

| | |
| --- | --- |
| held-out loss | {report["held_out_loss"]:.3f} nats per token, {report["bits_a_character"]:.3f} bits a character, on {report["held_out_windows"]} windows of 256 tokens from 40 segments across all books |
| training text | {report["n_train_tokens"]:,} tokens of the books below, shuffled by book |
| steps | {report["steps"]:,} of {recipe.get("batch", 16)} windows of 256 tokens: {n_tokens / 1e6:.1f} million tokens |
| optimizer | Muon (blocks' matrices, `match_rms_adamw`) and AdamW (the rest), peak rate {recipe.get("rate", 3e-3):g}, weight decay 0.1 on matrices, clipping at 1.0 |
| rate | {recipe.get("warmup", 100)} steps of warm-up, constant, linear decay to 1% over the last {recipe.get("decay", 0.4):.0%}{again} |
| precision | {"matrix products in bfloat16, weights in float32" if recipe.get("bfloat16") else "float32"} |
| script | `helpers/study/pretrain.py`; its log is `training_log.jsonl` beside this file |
| weight hash | `{report["weight_hash"]}` (`helpers.models.loading.weight_hash`) |
| file | `model.safetensors`, SHA-256 `{report["file_sha256"]}` |

**Good for:** mechanics, pictures, tests, and studies of fine-tuning that a laptop can repeat with many seeds.
**Not good for:** facts, long coherence, instructions, any language but old-fashioned English, anything a reader would
trust. Its books are a century old, and so are their views of people. It is no stand-in for a large model: a finding on
it is a finding on it.

## Books

All published before 1931, in the public domain in the United States. None by Lewis Carroll or Edgar Allan Poe.

{books}
"""  # noqa: E501 (a table row is one line)
