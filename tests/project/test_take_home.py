"""The page docs/take_home.md does what it says: its code and its commands run, and its numbers are recorded ones."""

import itertools
import re
import shlex
import warnings

import torch

from helpers.files import read_json
from helpers.models import build_model, load_model, weight_hash
from helpers.profiles import ROOT, TINY
from helpers.study import guard_cost
from helpers.training import load_delta
from publishing.cli import main
from support import tiny

PAGE = (ROOT / "docs" / "take_home.md").read_text("utf-8")
RUN_HERE, NOT_RUN_HERE = PAGE.split("## Other people's tests")
BLOCKS = re.findall(r"^```(python)?\n(.*?)^```$", RUN_HERE, re.MULTILINE | re.DOTALL)


def test_every_block_of_the_page_runs_in_its_order(tmp_path, monkeypatch, capsys):
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_PROFILE", "tiny")
    names: dict = {}
    deltas = []
    for kind, source in BLOCKS:
        if kind == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT's, as the page says
                exec(compile(source, "docs/take_home.md", "exec"), names)
        else:
            assert main(shlex.split(source)[1:]) == 0, capsys.readouterr().err
        if "delta=" in source:
            deltas.append(weight_hash(load_delta("RUN", load_model(TINY.model))))
    assert len(set(deltas)) == 2 and names["guard"].proof.ok
    said = capsys.readouterr().out
    assert "are bit-identical" in said
    assert "MiB at the peak" in said and "most of it: " in said
    assert "frozen bottom         the first 2 blocks" in said
    assert names["tuned"].dtype.itemsize == 2, "the last one is the merged model, in bfloat16"


def test_the_page_has_three_commands_and_six_pieces_of_code():
    assert [kind for kind, _ in BLOCKS].count("") == 3
    assert len(BLOCKS) == 9
    assert "**Not run here:**" in NOT_RUN_HERE


def test_what_the_guard_costs_is_what_was_recorded():
    record = read_json(guard_cost.FILE)
    quoted = re.search(r"^> (.*)$", PAGE, re.MULTILINE)[1]
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
