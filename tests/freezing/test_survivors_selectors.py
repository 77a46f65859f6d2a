"""Selectors: borders, order and hints that the other tests let pass when the code was broken."""

import hashlib
import re
from types import SimpleNamespace

import pytest

from helpers.freezing.selectors import PlanError, _is_bias, canonical, file_id, parse_selectors, select
from helpers.models.roles import Entry, anatomy
from support.families import family

TWO = anatomy(family("gpt_neo"))


def refused(text):
    with pytest.raises(PlanError) as caught:
        parse_selectors(text)
    return str(caught.value)


def not_found(selector, parts=TWO):
    with pytest.raises(PlanError) as caught:
        select(parts, selector)
    return str(caught.value)


def test_a_name_is_kept_up_to_80_signs_and_cut_with_a_hash_above():
    text = "layers0-1" * 9  # 81 signs
    assert file_id(text[:80]) == text[:80]
    assert file_id(text) == f"{text[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    assert file_id("a:b c/d") == "abcd" and file_id("a_b+c@d.e-f") == "a_b+c@d.e-f"


def test_selectors_stand_in_the_order_of_the_words_and_patterns_come_last():
    found = canonical(["name:a", "layers:1", "biases", "mlp@1", "lora", "attention", "mlp", "q"])
    assert found == ("attention", "mlp", "mlp@1", "biases", "q", "lora", "layers:1", "name:a")
    assert canonical("mlp+norm") == ("mlp", "norms") == canonical(["norms", "mlp", "norm"])


def test_words_are_stripped_and_only_norm_has_a_second_spelling():
    assert parse_selectors(" attention + norm@0-1 ") == ("attention", "norms@0-1")
    assert parse_selectors("norms") == ("norms",) and parse_selectors("name:norm") == ("name:norm",)


@pytest.mark.parametrize(
    "text, hint",
    [
        ("layer:3", "Did you mean 'layers:3'?"),
        ("blocks 0-2", "Did you mean 'layers:0-2'?"),
        ("block@7", "Did you mean 'layers:7'?"),
        ("h12", "Did you mean 'layers:12'?"),
        ("atention@1", "Did you mean 'attention'?"),
        ("NORMS", "Did you mean 'norms'?"),
        ("none", "To freeze nothing write FreezePlan.full()"),
        ("wte.weight", "For a parameter's name write 'name:wte.weight'."),
    ],
)
def test_a_hint_names_one_word(text, hint):
    message = refused(text)
    assert f"pattern. {hint}" in message and message.count("Did you mean") <= 1


def test_a_word_like_no_other_has_no_hint():
    assert "is no role, group, part or pattern. Roles: " in refused("zzzz")


def test_a_name_that_is_not_there_gets_the_three_nearest_patterns():
    nearest = re.search(r"Nearest: (.*)\.$", not_found("name:transformer.h.*.attn.attention.qq_proj.weight"))[
        1
    ]
    assert nearest.split(", ")[0] == "transformer.h.*.attn.attention.q_proj.weight"
    assert len(nearest.split(", ")) == 3
    strange = re.search(r"Nearest: (.*)\.$", not_found("name:§§§§"))[1].split(", ")
    assert strange == ["transformer.wte.weight", "lm_head.weight", "transformer.wpe.weight"]


def test_a_range_that_cannot_be_says_its_blocks():
    assert "write the smaller block first, 0-1." in not_found("mlp@1-0")
    assert "asks for block 2: this model has blocks 0 to 1." in not_found("mlp@0-2")
    assert select(TWO, "layers:0-1") == select(TWO, "blocks") and select(TWO, "mlp@1-1") == select(
        TWO, "mlp@1"
    )


def test_the_first_half_of_an_odd_number_of_blocks_is_the_smaller_one():
    three = anatomy(family("gpt_neo", num_layers=3, attention_types=[[["global"], 3]]))
    assert {three.entry(name).layer for name in select(three, "first-half")} == {None, 0}


def test_what_a_model_lacks_is_told_with_what_it_has_once_each():
    message = not_found("router")
    assert message.endswith("and the parts k, v, q, attention-out, mlp-in, mlp-out.")


def test_qkv_is_every_way_to_keep_queries_keys_and_values():
    parts = ("q", "k", "v", "kv", "qkv", "attention-out", "mlp-in")
    entries = [Entry(part, "attention", 0, part, (4, 4), 16) for part in parts]
    assert select(SimpleNamespace(entries=entries), "qkv") == {"q", "k", "v", "kv", "qkv"}
    for word in ("k", "v"):
        assert "fused tensors (kv)" in not_found(word, SimpleNamespace(entries=entries[3:4]))


def test_a_bias_is_a_vector_by_name_or_a_table_for_experts():
    def entry(name, *shape):
        return type("Entry", (), {"name": name, "shape": shape})

    assert _is_bias(entry("h.0.bias", 4)) and _is_bias(entry("h.0.gate_bias", 2, 4))
    assert not _is_bias(entry("h.0.bias", 1, 4)) and not _is_bias(entry("h.0.bias.weight", 4))
    assert not _is_bias(entry("bias.h", 4)) and not _is_bias(entry("h.0.weight", 4))
