"""What every method must do; SLEB and LLM-Streamline equal the plain form of their papers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from streamliner.errors import MethodError, RemovalError
from streamliner.measure.probe import Probe
from streamliner.model.stack import check_indices
from streamliner.runs.folder import run_difference
from streamliner.search.limits import parse_percentage, parse_remove
from streamliner.search.registry import full_name, make_method, method_names
from streamliner.search.run_method import run_method

METHODS = method_names()


@pytest.fixture
def probe(blocks, calibration):
    return Probe(blocks, calibration)


def run(probe, name, limit, **settings):
    return run_method(probe, make_method(name, settings), name, limit)


@pytest.mark.parametrize("name", METHODS)
def test_contract(name, probe):
    frontier = run(probe, name, 3)
    method = make_method(name)
    assert [len(point.removed) for point in frontier.points] == [1, 2, 3]
    for point in frontier.points:
        assert len(set(point.removed)) == len(point.removed)
        assert all(method.protect_first <= block < 12 - method.protect_last for block in point.removed)
        assert point.loss == probe.loss(point.removed).mean
        assert math.isfinite(point.score)
    assert run(probe, name, 3) == frontier
    assert isinstance(type(method).score, str)


@pytest.mark.parametrize("name", METHODS)
def test_protected_blocks_stay(name, probe):
    frontier = run(probe, name, 2, protect_first=4, protect_last=5)
    assert all(4 <= block < 7 for point in frontier.points for block in point.removed)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
def test_a_planted_identity_block_costs_nothing_and_goes_first(name, blocks, calibration):
    block = blocks.modules[6]
    block.self_attn.o_proj.weight.data.zero_()
    block.mlp.down_proj.weight.data.zero_()
    probe = Probe(blocks, calibration)
    more = {"budget": 1.0} if name == "refine" else {}  # a quarter of so little pays for no exchange
    frontier = run(probe, name, 2, **more)
    assert frontier.at(1).removed == (6,)
    assert frontier.at(1).loss == pytest.approx(frontier.dense_loss, rel=1e-5)
    assert 6 in frontier.at(2).removed


def naive_sleb(model, windows, count):
    """Algorithm 1 as the paper's code runs it: each candidate a whole forward at batch 1, blocks taken off the list."""
    layers, alive, order, losses = model.model.layers, list(range(12)), [], []
    for _ in range(count):
        best = None
        for candidate in alive[1:-1]:
            kept = [block for block in alive if block != candidate]
            model.model.layers = torch.nn.ModuleList([layers[block] for block in kept])
            with torch.inference_mode():
                each = [model(input_ids=w[None], labels=w[None], use_cache=False).loss.item() for w in windows]
            loss = sum(each) / len(each)
            if best is None or loss < best[0]:
                best = loss, candidate
        losses.append(best[0])
        order.append(best[1])
        alive.remove(best[1])
    model.model.layers = layers
    return order, losses


def test_sleb_equals_the_naive_loop_for_5_of_12(blocks, calibration):
    order, losses = naive_sleb(blocks.model, calibration.windows, 5)
    frontier = run(Probe(blocks, calibration), "sleb", 5)
    assert list(frontier.at(5).removed) == order
    assert [point.loss for point in frontier.points] == pytest.approx(losses, rel=1e-5)


def test_sleb_one_shot_ranks_by_losses_of_single_removals(probe):
    ranking = sorted(range(1, 11), key=lambda block: probe.loss((block,)).mean)
    assert list(run(probe, "sleb", 4, metric="one-shot").at(4).removed) == ranking[:4]


def test_sleb_similarity_ranks_like_block_influence(probe):
    similar = run(probe, "sleb", 4, metric="similarity").at(4)
    influence = run(probe, "block-influence", 4, protect_first=1, protect_last=1).at(4)
    assert similar.removed == influence.removed


def test_streamline_equals_the_interval_from_stored_hidden_states(blocks, calibration):
    stored = []
    with blocks.watch(lambda depth, stream: stored.append(stream)):
        blocks.forward(calibration.windows)
    frontier = run(Probe(blocks, calibration), "streamline", 6)
    for count in range(1, 7):
        means = [functional.cosine_similarity(stored[i], stored[i + count], dim=-1).mean() for i in range(13 - count)]
        start = int(torch.stack(means).argmax())
        assert frontier.at(count).removed == tuple(range(start, start + count))
        assert frontier.at(count).score == pytest.approx(1 - means[start].item(), abs=1e-5)


def test_exhaustive_is_the_optimum_and_no_method_beats_it(probe):
    best = run(probe, "exhaustive", 2, protect_first=3, protect_last=3)
    pairs = {pair: probe.loss(pair).mean for pair in itertools.combinations(range(3, 9), 2)}
    assert best.at(2).removed == min(pairs, key=lambda pair: pairs[pair])
    assert run(probe, "sleb", 2, protect_first=3, protect_last=3).at(2).loss >= best.at(2).loss


def test_exhaustive_refuses_to_take_forever(probe):
    with pytest.raises(MethodError, match="tries 175 sets"):
        run(probe, "exhaustive", 3, most_sets=100)


def test_random_follows_its_seed(probe):
    orders = {run(probe, "random", 4, seed=seed).at(4).removed for seed in range(4)}
    assert len(orders) == 4


def test_the_perplexity_bound_stops_the_search(probe):
    whole = run(probe, "sleb", 4)
    rise = math.exp(whole.at(2).loss - whole.dense_loss) - 1
    stopped = run_method(probe, make_method("sleb"), "sleb", None, rise + 1e-6)
    assert stopped.points == whole.points[:2]
    with pytest.raises(RemovalError, match="removal of any block"):
        run_method(probe, make_method("sleb"), "sleb", None, 1e-4)


@pytest.mark.parametrize(("text", "count"), [("3", 3), ("20%", 3), ("25%", 3), ("26%", 4), ("1%", 1), ("8.3%", 1)])
def test_parse_remove(text, count):
    assert parse_remove(text, 12) == count


@pytest.mark.parametrize("text", ["0", "0%", "12", "100%", "120%", "-1", "x", "1.5", ""])
def test_parse_remove_refuses(text):
    with pytest.raises(RemovalError):
        parse_remove(text, 12)


def test_parse_percentage():
    assert parse_percentage("--max-perplexity-increase", "10%") == pytest.approx(0.1)
    with pytest.raises(RemovalError):
        parse_percentage("--max-perplexity-increase", "10")


OWN_METHOD = """
from dataclasses import dataclass
from {home} import Point

@dataclass(frozen=True)
class Last:
    protect_first: int = 0
    protect_last: int = 0
    score = "none"

    def search(self, probe, limit):
        for n in range(1, limit + 1):
            yield Point(tuple(range(12 - n, 12)), 0.0)
"""


@pytest.mark.parametrize("home", ["streamliner", "streamliner.search"])
def test_a_method_from_a_file(tmp_path, probe, home):
    """`streamliner.search` is where files written for earlier releases import `Point` from."""
    file = tmp_path / "mine.py"
    file.write_text(OWN_METHOD.format(home=home))
    frontier = run(probe, f"{file}:Last", 2)
    assert frontier.method == f"{file}:Last"
    assert frontier.at(2).removed == (10, 11)
    with pytest.raises(MethodError, match="no method First"):
        make_method(f"{file}:First")
    for part, missing in (('    score = "none"\n', "score"), ("    protect_first: int = 0\n", "protect_first")):
        file.write_text(OWN_METHOD.format(home=home).replace(part, ""))
        with pytest.raises(MethodError, match=f"Last in .*mine.py is not a dataclass with {missing}"):
            make_method(f"{file}:Last")
    file.write_text(OWN_METHOD.format(home=home).replace("@dataclass(frozen=True)", ""))
    with pytest.raises(MethodError, match=r"Last in .*mine\.py is not a dataclass with score"):
        make_method(f"{file}:Last")


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("(3,)", r"yielded \(3,\), which is no Point"),
        ("Point((3, 3), 0.0)", "each must be one of 0 to 11, named once"),
        ("Point((12,), 0.0)", "each must be one of 0 to 11"),
        ("Point((1, 2, 3), 0.0)", "yielded 3 blocks, but it was asked for 1 to 2"),
    ],
)
def test_what_a_method_yields_is_checked(tmp_path, probe, points, message):
    file = tmp_path / "mine.py"
    text = OWN_METHOD.format(home="streamliner")
    file.write_text(text.replace("Point(tuple(range(12 - n, 12)), 0.0)", points))
    with pytest.raises(MethodError, match=message):
        run(probe, f"{file}:Last", 2)


def test_a_method_may_count_in_numpy(tmp_path, probe):
    """As `argsort` gives them; JSON knows only Python's numbers."""
    file = tmp_path / "mine.py"
    text = "import numpy as np" + OWN_METHOD.format(home="streamliner").replace(
        "range(12 - n, 12)", "np.arange(12 - n, 12)"
    )
    file.write_text(text.replace(", 0.0)", ", np.float32(1.5), None, None, {np.int64(3): np.float32(0.5)})"))
    frontier = run(probe, f"{file}:Last", 2)
    assert json.loads(json.dumps(dataclasses.asdict(frontier)))["points"][0]["removed"] == [11]
    assert (frontier.at(2).score, frontier.at(2).candidates) == (1.5, {3: 0.5})
    assert json.dumps(check_indices(np.arange(2), 12)) == "[0, 1]"


def test_a_method_that_yields_nothing_is_told_so(tmp_path, probe):
    file = tmp_path / "mine.py"
    file.write_text(OWN_METHOD.format(home="streamliner").replace("limit + 1", "1"))
    with pytest.raises(RemovalError, match="found nothing to remove") as caught:
        run(probe, f"{file}:Last", 2)
    assert "must yield a Point" in caught.value.hint


def test_a_setting_that_is_true_or_false_takes_no_other_word(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        OWN_METHOD.format(home="streamliner").replace("    protect_last", "    largest: bool = True\n    protect_last")
    )
    assert make_method(f"{file}:Last", {"largest": "False"}).largest is False
    assert make_method(f"{file}:Last", {"largest": True}).largest is True
    with pytest.raises(MethodError, match=r"largest of .* must be true or false, not 'maybe'"):
        make_method(f"{file}:Last", {"largest": "maybe"})


def test_a_run_with_a_method_from_a_file_may_be_moved():
    there, here = ({"identity": {"method": f"{place}/my_own.py:A_b"}} for place in ("/old", "new/place"))
    assert run_difference(there, here) == ""
    assert run_difference(there, {"identity": {"method": "/old/my_own.py:A_c"}}) != ""


def test_methods_have_dashed_names_and_the_old_ones_still_work():
    assert {"block-influence", "angular-distance"} < set(METHODS)
    assert type(make_method("block_influence")) is type(make_method("block-influence"))
    assert full_name("angular_distance") == "angular-distance"
    assert full_name("my_methods/a_b.py:C_d") == "my_methods/a_b.py:C_d"
    with pytest.raises(MethodError, match="Did you mean block-influence"):
        make_method("block-influenc")


@pytest.mark.parametrize("name", sorted({*METHODS} - {"best", "beam", "refine", "evolution"}))  # these say "at most"
def test_progress_expects_what_a_method_asks_for(name, blocks, calibration):
    """Where no candidate is refused and nothing is known, the total is right before the first candidate."""
    steps = []
    settings = {"protect_first": 4, "protect_last": 4}
    probe = Probe(blocks, calibration, on_progress=lambda *step: steps.append(step))
    run_method(probe, make_method(name, settings), name, 2)
    assert steps[-1][0] == steps[-1][1]
    windows = len(calibration.windows)
    one_pass = windows if probe.measured_similarity is not None else 0
    totals = {total for done, total in steps if done > windows + one_pass}
    assert totals == {steps[-1][1]}
