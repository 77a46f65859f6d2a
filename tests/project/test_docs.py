"""The pages of docs/ keep step with the course: the glossary, what one takes home, and the list of external addresses."""

import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
import urllib.error
import warnings
from datetime import date
from pathlib import Path

import nbformat
import pytest
import torch

from helpers.files import read_json
from helpers.measuring import held_out_loss
from helpers.models import build_model, load_model, next_token_loss, weight_hash
from helpers.profiles import ROOT, TINY
from helpers.study import guard_cost
from helpers.study.records import RecordError
from helpers.texts import tensor_of
from helpers.training import load_delta
from publishing import links as check_links
from publishing.cli import main
from publishing.links import UNSEEN
from support import tiny

PAGE = (ROOT / "docs" / "glossary.md").read_text("utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \| (\w\d) \|$", PAGE, re.MULTILINE)


def prose(number: str) -> str:
    """All text and output of a notebook, in lower case."""
    found = list((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
    if not found:
        pytest.skip(f"notebook {number} is not there yet")
    cells = nbformat.read(found[0], as_version=4).cells
    return "\n".join(c.source for c in cells).lower()


@pytest.mark.parametrize(("word", "meaning", "number"), ROWS)
def test_a_word_is_used_in_the_notebook_that_needs_it_first(word, meaning, number):
    names = [re.sub(r" \(.*\)", "", name).strip().lower() for name in word.split(",")]
    text = prose(number)
    missing = [n for n in names if not re.search(rf"(?<!\w){re.escape(n)}", text)]
    assert not missing, f"{missing} not in notebook {number}"
    assert meaning.strip()


def test_the_words_are_sorted_and_each_is_defined_once():
    words = [word.lower() for word, _, _ in ROWS]
    assert len(words) > 50
    assert words == sorted(words) and len(set(words)) == len(words)


# --- docs/take_home.md --------------------------------------------------------------

TAKE_HOME = (ROOT / "docs" / "take_home.md").read_text("utf-8")
OURS, BY_LM_EVAL = TAKE_HOME.split("## Other people's tests")
TASK = "held_out.yaml"  # the name that the page gives to its only file of YAML


def blocks(text: str) -> list[tuple[str, str]]:
    """(kind, source) of each fenced block: "python", "yaml", or "" for a shell."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_block(kind: str, source: str, names: dict, capsys) -> None:
    """Run a block of the page in the current folder, as a reader would."""
    if kind == "python":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, as the page says
            exec(compile(source, "docs/take_home.md", "exec"), names)
    elif kind == "yaml":
        Path(TASK).write_text(source, "utf-8")
    else:
        for line in source.splitlines():
            program, *words = shlex.split(line)
            if program == "course":
                assert main(words) == 0, capsys.readouterr().err
            else:
                done = subprocess.run(
                    [Path(sys.executable).with_name(program), *words], capture_output=True, text=True
                )
                assert done.returncode == 0, done.stderr


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader's folder with the course's data in it, and no predictions of its own."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_PROFILE", "tiny")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_every_block_of_the_page_runs_in_its_order(reader, capsys):
    names: dict = {}
    deltas = []
    for kind, source in blocks(OURS):
        run_block(kind, source, names, capsys)
        if "delta=" in source:
            deltas.append(weight_hash(load_delta("RUN", load_model(TINY.model))))
    assert len(set(deltas)) == 2 and names["guard"].proof.ok
    said = capsys.readouterr().out
    assert "are bit-identical" in said
    shown = re.findall(r"^    (.+)$", OURS.partition("```python\n")[2], re.MULTILINE)
    code = {line.strip() for _, source in blocks(OURS) for line in source.splitlines()}
    outputs = [line for line in shown if line.strip() not in code]
    assert len(outputs) == 10 and all(line in said for line in outputs), "what the page says is printed"
    assert "frozen bottom         the first 2 blocks" in said
    assert names["tuned"].dtype.itemsize == 2, "the last one is the merged model, in bfloat16"


def test_the_page_has_five_commands_nine_pieces_of_code_and_one_file():
    assert [kind for kind, _ in blocks(OURS)] == [
        "python", "python", "python", "", "", "python", "python", "", "python"
    ]  # fmt: skip
    assert [kind for kind, _ in blocks(BY_LM_EVAL)] == ["python", "yaml", "", "python", "python"]
    assert f"`{TASK}`" in BY_LM_EVAL


@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install lm_eval[hf]"
)
def test_lm_eval_runs_as_the_page_says_and_its_numbers_are_the_courses(reader, capsys):
    names: dict = {}
    for kind, source in blocks(TAKE_HOME):
        run_block(kind, source, names, capsys)
    said = capsys.readouterr().out
    table = re.findall(r"^\| (?:base|merged) \| (\S+) \| (\S+) \|$", BY_LM_EVAL, re.MULTILINE)
    ours = re.findall(r"word perplexity (\S+), (\S+) bits per byte", said)
    for folder, in_the_page, by_the_course in zip(("before", "after"), table, ours, strict=True):
        (file,) = Path(folder).glob("*/results_*.json")
        found = read_json(file)["results"]["held_out"]
        wanted = found["word_perplexity,none"], found["bits_per_byte,none"]
        assert by_the_course == (f"{wanted[0]:.1f}", f"{wanted[1]:.3f}")
        assert tuple(map(float, in_the_page)) == pytest.approx(wanted, rel=0.005)
    losses = [next_token_loss(names["judged"], ids)[0].item() for ids in rows_of(names)]
    assert losses == pytest.approx(list(names["nats"]("after")), abs=0.001)
    change = float(re.search(r"merged - base: (\S+) \[", said)[1])
    in_words = re.search(r"`merged - base: (\S+) \[", BY_LM_EVAL)[1]
    assert change < 0 and change == pytest.approx(float(in_words), rel=0.05)
    window = held_out_loss(load_model(TINY.model), tensor_of(names["text"].test)).mean
    assert f"another number, {window:.2f} here: its windows of 64 tokens" in BY_LM_EVAL


def rows_of(names: dict) -> list[torch.Tensor]:
    """The page's paragraphs as windows, each with the begin mark."""
    tokenizer = names["tokenizer"]
    return [
        torch.tensor([[tokenizer.bos_token_id, *tokenizer(paragraph)["input_ids"]]])
        for paragraph in names["paragraphs"]
    ]


def test_what_the_guard_costs_is_what_was_recorded():
    record = read_json(guard_cost.FILE)
    quoted = re.search(r"^> (.*)$", TAKE_HOME, re.MULTILINE)[1]
    assert quoted == f"{guard_cost.sentence(record)} {guard_cost.at_the_ends(record)}"


def test_the_record_is_of_the_shipped_miniature_and_below_one_percent():
    record = read_json(guard_cost.FILE)
    assert record["model_hash"] == weight_hash(load_model(TINY.model, device="cpu"))
    assert len(record["log_ratios"]) >= 20
    assert record["share_of_a_step"] < 0.01
    assert guard_cost.more(record).high < 0.01


def test_a_measurement_runs_pairs_of_equal_work():
    ids = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))
    clock = itertools.count()
    found = guard_cost.measure(build_model(tiny.config()), ids, 2, clock=lambda: next(clock))
    assert found["log_ratios"] == [0.0, 0.0], "each run is one tick of this clock"
    assert found["end_in_steps"] == guard_cost.EVERY
    assert found["share_of_a_step"] > 0
    assert guard_cost.more(found).mean == 0


def test_fewer_pairs_never_take_the_place_of_more(tmp_path, monkeypatch):
    monkeypatch.setattr(guard_cost, "load_model", None)  # refused before anything is measured
    place = tmp_path / "guard.json"
    place.write_text('{"log_ratios": [0.0, 0.0, 0.0, 0.0]}')
    with pytest.raises(RecordError, match="holds 4 pairs, more than the 2 .* Give --pairs 4 or more"):
        guard_cost.record(2, place)
    assert read_json(place) == {"log_ratios": [0.0] * 4}


# --- docs/external_links.toml -------------------------------------------------------


def small_course(folder):
    """A course with two addresses, one of which was seen."""
    (folder / "docs").mkdir()
    (folder / "pyproject.toml").write_text('[tool.frozen-attention]\nrepository = "ada/course"\n')
    (folder / "README.md").write_text(
        "See [a](https://example.org/a), https://example.org/b. "
        "Ours: https://github.com/ada/course/blob/main/README.md"
    )
    check_links.write_list(
        folder, {"https://example.org/a": "2026-01-02", "https://example.org/gone": UNSEEN}
    )
    return folder


def test_every_external_address_is_in_the_list():
    assert set(check_links.read_list(ROOT)) == check_links.external(ROOT), "run course links"


def test_the_list_says_when_each_was_seen():
    for day in check_links.read_list(ROOT).values():
        assert day == UNSEEN or date.fromisoformat(day) <= date.today()


def test_the_list_is_as_the_script_writes_it():
    lines = (ROOT / check_links.LIST).read_text("utf-8").splitlines()
    kept = [line for line in lines if line.startswith('"')]
    assert kept == sorted(kept) and "\n".join(lines).startswith(check_links.HEADER.strip())


def test_an_address_ends_before_the_stop_behind_it():
    text = "(https://example.org/a_b), **https://example.org/c.txt**. `https://example.org` [x](https://e.org/d#e)"
    assert check_links.addresses(text) == {
        "https://example.org/a_b",
        "https://example.org/c.txt",
        "https://example.org",
        "https://e.org/d#e",
    }


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("https://github.com/ada/course", True),
        ("https://github.com/ada/course/blob/main/a.md", True),
        ("https://github.com/ada/course-two", False),
        ("https://ada.github.io/course/_static/a.html", True),
        ("https://ada.github.io/course-two/a.html", False),
        ("https://example.org/ada", False),
    ],
)
def test_the_courses_own_addresses_are_known(address, own):
    assert check_links.is_own(address, "ada/course") is own


def test_an_answer_is_dated_and_a_silence_is_told(tmp_path, monkeypatch):
    course = small_course(tmp_path)
    monkeypatch.setattr(
        check_links, "problem", lambda address: "status 404" if address.endswith("/a") else None
    )
    failures = check_links.check(course, "2026-11-24")
    assert failures == ["https://example.org/a: status 404 (last seen: 2026-01-02)"]
    seen = check_links.read_list(course)
    assert (seen["https://example.org/a"], seen["https://example.org/b"]) == ("2026-01-02", "2026-11-24")
    assert "https://example.org/gone" not in seen and not any("ada/course" in address for address in seen)


def test_an_error_of_the_network_is_a_reason_not_a_crash(monkeypatch):
    def silent(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(check_links.urllib.request, "urlopen", silent)
    assert check_links.problem("https://example.org") == "no route to host"


def test_an_answer_with_an_error_status_is_none(monkeypatch):
    def refused(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 404, "Not Found", {}, None)

    monkeypatch.setattr(check_links.urllib.request, "urlopen", refused)
    assert re.fullmatch("status 404", check_links.problem("https://example.org"))
