"""The config rules, each with a small example; and the new names of modules."""

from __future__ import annotations

import pytest

from streamliner.cut.config import cut_config, cut_outer_config, with_legacy_rope
from streamliner.cut.rules import FIELDS, refused
from streamliner.errors import UnsupportedModelError


@pytest.mark.parametrize(
    ("config", "removed", "expected"),
    [
        (
            {"num_hidden_layers": 4, "n_layer": 4, "num_layers": 9},
            (1,),
            {"num_hidden_layers": 3, "n_layer": 3, "num_layers": 9},
        ),
        ({"layer_types": ["a", "b", "c", "d"]}, (0, 2), {"layer_types": ["b", "d"]}),
        ({"no_rope_layers": [1, 1, 0, 1]}, (2,), {"no_rope_layers": [1, 1, 1]}),
        ({"mlp_only_layers": [0, 3]}, (0,), {"mlp_only_layers": [2]}),
        ({"moe_layers": [0, 1, 2, 3]}, (1,), {"moe_layers": [0, 1, 2]}),
        ({"first_k_dense_replace": 2}, (1, 3), {"first_k_dense_replace": 1}),
        ({"max_window_layers": 28}, (1,), {"max_window_layers": 3}),
        (
            {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
            (0,),
            {"decoder_sparse_step": 1, "mlp_only_layers": [1, 2]},
        ),
        ({"num_nextn_predict_layers": 1}, (0,), {"num_nextn_predict_layers": 0}),
        ({"eos_token_id": [1, 2, 3, 4]}, (0,), {"eos_token_id": [1, 2, 3, 4]}),
        ({"layer_types": None}, (0,), {"layer_types": None}),
        ({"intermediate_size": 64}, (0,), {"intermediate_size": 64}),
        ({"intermediate_size": [1, 2, 3, 4]}, (0,), {"intermediate_size": [2, 3, 4]}),
        ({"cross_attention_layers": [1, 3]}, (2,), {"cross_attention_layers": [1, 2]}),
        (
            {"attention_layers": ["g", "l", "g", "l"], "attention_types": [[["g", "l"], 2]]},
            (1,),
            {"attention_layers": ["g", "g", "l"], "attention_types": [[["g"], 1], [["g"], 1], [["l"], 1]]},
        ),
        (
            {"moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1},
            (0, 2),
            {"moe_layer_start_index": 0, "moe_layer_end_index": 1, "moe_layer_interval": 1},
        ),
        ({"attn_layer_period": 2, "attn_layer_offset": 1}, (0, 2), {"attn_layer_period": 1, "attn_layer_offset": 0}),
        (
            {"moe_layer_start_index": 1, "moe_layer_end_index": 3, "moe_layer_interval": 2},
            (2,),
            {"moe_layer_start_index": 1, "moe_layer_end_index": 2, "moe_layer_interval": 1},
        ),
        ({"scale_depth": 2.0}, (0, 1, 2), {"scale_depth": 1.0}),
        ({"ple_layer_ids": [1, 4]}, (1,), {"ple_layer_ids": [1, 3]}),
        ({"per_layer_config": {"1": {"a": 1}, "3": {"a": 2}}}, (0, 3), {"per_layer_config": {"0": {"a": 1}}}),
        ({"per_layer_config": {1: {"a": 1}}}, (0,), {"per_layer_config": {0: {"a": 1}}}),
        (
            {"num_kv_shared_layers": 2, "layer_types": ["a", "b", "a", "b"]},
            (3,),
            {"num_kv_shared_layers": 1, "layer_types": ["a", "b", "a"]},
        ),
        ({"block_types": ["r", "r", "a"]}, (1,), {"block_types": ["r", "a", "r"]}),
        ({"hybrid_override_pattern": "M*-M"}, (1,), {"hybrid_override_pattern": "M-M"}),
        ({"hybrid_layer_ids": [1, 3]}, (0, 3), {"hybrid_layer_ids": [0]}),
        (
            {"sparse_attention_config": {"sparse_attention_freq": [0, 1, 1, 0], "top": 9}},
            (0,),
            {"sparse_attention_config": {"sparse_attention_freq": [1, 1, 0], "top": 9}},
        ),
        ({"indexer_types": ["full", "shared", "full", "shared"]}, (0, 1), {"indexer_types": ["full", "shared"]}),
        ({"depth": 4, "heads": 4}, (0,), {"depth": 4, "heads": 4}),
        (
            {"linear_attn_config": {"full_attn_layers": [4], "kda_layers": [1, 2, 3], "x": 1}},
            (1,),
            {"linear_attn_config": {"full_attn_layers": [3], "kda_layers": [1, 2], "x": 1}},
        ),
    ],
)
def test_rules(config, removed, expected):
    before = repr(config)
    assert cut_config(config, removed, 4) == expected
    assert repr(config) == before


def test_a_count_by_another_name():
    assert cut_config({"depth": 4, "heads": 4}, (0,), 4, "depth") == {"depth": 3, "heads": 4}


@pytest.mark.parametrize("key", [key for key, rule in FIELDS.items() if rule is refused])
def test_keys_without_a_rule_are_refused_by_name(key):
    with pytest.raises(UnsupportedModelError, match=key):
        cut_config({key: 7}, (1,), 4)


@pytest.mark.parametrize(
    ("config", "removed", "message"),
    [
        (
            {"moe_layer_start_index": 0, "moe_layer_end_index": 2, "moe_layer_interval": 1, "x": 0},
            (0, 1, 2),
            "No block with experts",
        ),
        ({"attn_layer_period": 2, "attn_layer_offset": 0}, (1,), "No attn_layer_period"),
        ({"num_kv_shared_layers": 2, "layer_types": ["a", "b", "a", "b"]}, (0,), "Block 0 makes the keys and values"),
        ({"indexer_types": ["full", "shared", "full", "full"]}, (0,), "uses the index of a block before"),
        ({"cross_attention_layers": [1]}, (0,), "cross_attention_layers"),
    ],
)
def test_patterns_that_no_value_describes_are_refused(config, removed, message):
    with pytest.raises(UnsupportedModelError, match=message):
        cut_config(config, removed, 4)


def test_experts_that_no_interval_describes_are_refused():
    config = {"moe_layer_start_index": 0, "moe_layer_end_index": -1, "moe_layer_interval": 2}
    with pytest.raises(UnsupportedModelError, match=r"would be \[0, 2, 4\], which no range and moe_layer_interval"):
        cut_config(config, (0,), 6)


def test_an_unknown_dict_by_number_is_refused():
    with pytest.raises(UnsupportedModelError, match="ranks is a dict by number"):
        cut_config({"ranks": {"0": 8, "3": 16}}, (1,), 4)


def test_images_that_go_into_blocks_by_position():
    """What Qwen3-VL and Granite 4 Vision add to the stream of the text; no check on text can see it."""
    first = {"vision_config": {"deepstack_visual_indexes": [5, 11]}}
    assert cut_outer_config(first, (2,), 4) == {}
    with pytest.raises(UnsupportedModelError, match="after block 1"):
        cut_outer_config(first, (1, 2), 4)
    named = {"deepstack_layer_map": [[-9, 1]], "spatial_target_layers": [3]}
    assert cut_outer_config(named, (0, 2), 4) == {"deepstack_layer_map": [[-9, 0]], "spatial_target_layers": [1]}
    with pytest.raises(UnsupportedModelError, match="before block 3"):
        cut_outer_config(named, (3,), 4)


def test_an_unknown_list_with_an_entry_per_block_is_refused():
    with pytest.raises(UnsupportedModelError, match="block_sizes has 4 entries"):
        cut_config({"block_sizes": [1, 2, 3, 4]}, (1,), 4)


def test_a_list_of_the_wrong_length_is_refused():
    with pytest.raises(UnsupportedModelError, match="layer_types has 3 entries for 4 blocks"):
        cut_config({"layer_types": ["a"] * 3}, (1,), 4)


def test_legacy_rope():
    assert with_legacy_rope({"rope_parameters": {"rope_theta": 5e5}})["rope_theta"] == 5e5
    nested = {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}}
    assert with_legacy_rope(nested) | nested == nested | {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
    assert with_legacy_rope({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}})["rope_theta"] == 1.0
    assert with_legacy_rope({}) == {}
