"""Healed weights go back into the GGUF file: tensors that changed, in the types that they have, all else as it was."""

from __future__ import annotations

import json
import shutil
from pydoc_data.topics import topics

import pytest
import torch

pytest.importorskip("gguf")

import gguf

from command import run
from families import make_model
from gguf_files import write_gemma_gguf, write_gguf
from places import TINY
from streamliner.cut.gguf import compare_gguf, prepare_gguf, replace_in_gguf, write_gguf as write_cut
from streamliner.cut.structure import Structure
from streamliner.errors import HealingError
from streamliner.heal import save_gguf
from streamliner.heal.graft import Graft
from streamliner.heal.save_gguf import check_gguf_healing, store_weights
from streamliner.heal_settings import HealSettings
from streamliner.model.blocks import Blocks
from streamliner.model.compat import gguf_names
from streamliner.model.gguf_header import read_header
from streamliner.model.load import load_model
from streamliner.model.mark import GGUF_MARK
from streamliner.model.session import open_model

REMOVED, BLOCK, NEW = (1, 4), 3, 2
"""Block 3 of the dense model, which changes, is block 2 of the cut one."""
ROUNDING = {"F32": 1e-6, "F16": 1e-3, "BF16": 4e-3, "Q8_0": 1e-2, "Q4_1": 0.1}
"""Largest error by type, relative to the values; with a wrong inverse it would be 1.4. Norms of Gemma are near 0, and
written as 1 + weight."""
KINDS = {"attn_q": "Q4_1", "attn_k": "F16", "attn_v": "BF16", "ffn_down": "Q4_K", "": "Q8_0"}
SEARCH = (
    "--calibration",
    "text.txt",
    "--num-samples",
    "2",
    "--sequence-length",
    "64",
    "--method",
    "streamline",
    "--remove",
    "2",
)
TEXT = ("--data", "text.txt", "--sequence-length", "64", "--validation-windows", "2")
TRAINING = (*TEXT, "--global-batch-size", "4", "--micro-batch", "2", "--steps", "3", "--learning-rate", "1e-3")


def llama(folder):
    return write_gguf(TINY, folder / "dense.gguf", kinds=KINDS)


def gemma(family):
    def write(folder):
        size = len(json.loads((TINY / "tokenizer.json").read_text())["model"]["vocab"])
        model = make_model(family, num_hidden_layers=6, vocab_size=size)
        return write_gemma_gguf(model, TINY, folder / "dense.gguf")

    return write


def changed_graft(dense, cut):
    """A healed model, of whose block 3 all weights changed; `cut` is the file without the removed blocks."""
    session, model = open_model(dense), load_model(dense)
    write_cut(prepare_gguf([dense], Structure(session.shell), REMOVED), cut)
    generator = torch.Generator().manual_seed(0)
    for parameter in Blocks(model).modules[BLOCK].parameters():
        parameter += torch.randn(parameter.shape, generator=generator) * 0.05
    return Graft(Blocks(model), (), {}, REMOVED)


@pytest.mark.parametrize("write", [llama, gemma("gemma2"), gemma("gemma3")], ids=["llama", "gemma2", "gemma3"])
def test_healed_tensors_are_read_back_as_they_were_written(tmp_path, write):
    """Queries and keys of Llama are permuted in a file, norms of Gemma lack 1 in memory."""
    dense, cut, out = write(tmp_path), tmp_path / "cut.gguf", tmp_path / "out.gguf"
    graft = changed_graft(dense, cut)
    healed = {name: each.clone() for name, each in graft.blocks.modules[BLOCK].state_dict().items()}
    stored = store_weights(graft, cut)
    new = replace_in_gguf(cut, stored.data, {})
    write_cut(new, out)
    assert compare_gguf(out, new) == len(read_header(cut).tensors)

    block = {name for name in read_header(cut).tensors if name.startswith(f"blk.{NEW}.")}
    assert stored.data.keys() == block
    before, after = ({each.name: each for each in gguf.GGUFReader(path).tensors} for path in (cut, out))
    for name in before.keys() - block:
        assert after[name].data.tobytes() == before[name].data.tobytes()
    assert {n: e.tensor_type for n, e in after.items() if "ffn_down" not in n} == {
        n: e.tensor_type for n, e in before.items() if "ffn_down" not in n
    }

    model, memory = load_model(out), graft.blocks.modules[BLOCK].state_dict()
    names, found = gguf_names(read_header(out).architecture, model), model.state_dict()
    assert {names[name] for name in block} == {f"model.layers.{NEW}.{name}" for name in healed}
    for name in block:
        inner, kind = names[name], after[name].tensor_type.name
        wanted = healed[inner.removeprefix(f"model.layers.{NEW}.")]
        assert torch.equal(found[inner], stored.values[inner])
        assert torch.equal(found[inner], memory[inner.removeprefix(f"model.layers.{NEW}.")])
        assert (found[inner] - wanted).norm() <= ROUNDING[kind] * wanted.norm(), name
    assert sum(stored.report["changed"].values()) == len(healed)
    quantised = write is llama
    assert stored.report["in_float16"] == ([f"blk.{NEW}.ffn_down.weight"] if quantised else [])
    assert (stored.report["largest_error"] > 0.01) == quantised


def test_what_did_not_change_is_written_as_it_was(tmp_path):
    dense, cut = llama(tmp_path), tmp_path / "cut.gguf"
    write_cut(prepare_gguf([dense], Structure(open_model(dense).shell), REMOVED), cut)
    stored = store_weights(Graft(Blocks(load_model(dense)), (), {}, REMOVED), cut)
    assert not stored.data
    write_cut(replace_in_gguf(cut, stored.data, {}), tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == cut.read_bytes()


def test_a_wrong_inverse_is_noticed(monkeypatch, tmp_path):
    graft = changed_graft(llama(tmp_path), tmp_path / "cut.gguf")
    monkeypatch.setitem(save_gguf.INVERSES, "llama", lambda config, name, values: values)
    with pytest.raises(
        HealingError, match=r"self_attn.[qk]_proj.weight would be loaded from a GGUF file as another one"
    ):
        store_weights(graft, tmp_path / "cut.gguf")


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    graft = changed_graft(llama(tmp_path), tmp_path / "cut.gguf")
    graft.blocks.modules[BLOCK].self_attn.k_proj.weight.data *= 1e6
    with pytest.raises(HealingError, match=r"k_proj.weight has numbers that do not fit into F16"):
        store_weights(graft, tmp_path / "cut.gguf")


@pytest.mark.parametrize("architecture", ["qwen2moe", "qwen35"])
def test_an_architecture_whose_conversion_is_not_known_is_refused_before_any_work(tmp_path, architecture):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(HealingError, match=f"transformers changes tensors of {architecture}"):
        check_gguf_healing(tmp_path / "a.gguf", HealSettings())


@pytest.fixture(autouse=True)
def text(tmp_path, monkeypatch):
    """A short text in the current folder, as tokenising all of python-docs takes seconds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(topics.values())[:40_000])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A dense file in Q8_0 and the same without blocks 5 and 6."""
    from streamliner.cli import main

    folder = tmp_path_factory.mktemp("files")
    dense = write_gguf(TINY, folder / "dense.gguf", kinds={"": "Q8_0"})
    with pytest.raises(SystemExit) as ended:
        main(["cut", str(dense), "--blocks", "5,6", "-o", str(folder / "cut.gguf"), "--quiet", "--no-verify"])
    assert not ended.value.code
    return dense, folder / "cut.gguf"


def test_heal_writes_a_file_whose_trained_block_alone_changed(capsys, files, tmp_path):
    out = tmp_path / "healed.gguf"
    text, _ = run(capsys, "heal", files[1], "-o", out, *TRAINING, "--loss", "lm")
    text = " ".join(text.split())
    assert "Tensors that changed: 2 in F32, 7 in Q8_0; all others as in the cut file." in text
    assert "unquantised" in text
    assert "Verified in float32" in text
    header, cut = read_header(out), read_header(files[1])
    assert header.places == cut.places | {
        name: place for name, place in header.places.items() if place.begin != cut.places[name].begin
    }
    before, after = ({each.name: each.data.tobytes() for each in gguf.GGUFReader(p).tensors} for p in (files[1], out))
    assert {name for name in before if before[name] != after[name]} == {n for n in before if n.startswith("blk.4.")}
    mark = json.loads(header.keys[GGUF_MARK])
    assert mark["removed"] == [5, 6]
    assert mark["healing"]["stored"]["changed"] == {"Q8_0": 7, "F32": 2}
    perplexity = mark["healing"]["validation_perplexity"]
    assert perplexity["healed"] == pytest.approx(perplexity["unquantised"], rel=0.01)
    assert open_model(out).describe()["method"] == "manual, healed"
    assert "is healed already" in run(capsys, "heal", out, "-o", tmp_path / "b.gguf", *TRAINING, status=2)[1]
    assert "add --overwrite" in run(capsys, "heal", files[1], "-o", out, *TRAINING, status=2)[1]
    assert "is healed, so" in run(capsys, "verify", out)[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["healed.gguf", "healed.gguf.run", "text.txt"]


def test_prune_with_a_fold_writes_a_file_and_continues(capsys, files, tmp_path):
    out, arguments = tmp_path / "small.gguf", (*SEARCH, "--fold", "auto", *TEXT, "--fold-tokens", "2000")
    result = json.loads(run(capsys, "prune", files[0], "-o", out, *arguments, "--json")[0])
    healing = result["healing"]
    assert healing["stored"]["changed"] == {"Q8_0": 1}
    assert healing["validation_perplexity"]["healed"] < healing["validation_perplexity"]["cut"]
    assert read_header(tmp_path / "small.gguf.run" / "cut.gguf").keys[GGUF_MARK]
    first = out.read_bytes()
    written = (tmp_path / "small.gguf.run" / "cut.gguf").stat().st_mtime_ns
    out.unlink()
    again = json.loads(run(capsys, "prune", files[0], "-o", out, *arguments, "--json")[0])
    assert again["cut"] == result["cut"]
    assert (tmp_path / "small.gguf.run" / "cut.gguf").stat().st_mtime_ns == written
    assert len(out.read_bytes()) == pytest.approx(len(first), abs=64)  # seconds of the fold are in its key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["heal", "CUT", "-o", "healed"], "Write -o NAME.gguf"),
        (["heal", "CUT", "-o", "OUT", "--network", "swiglu"], "not the network swiglu"),
        (["heal", "FOLDER", "-o", "OUT"], "nothing is converted here"),
        (["heal", "CUT", "-o", "CUT", "--overwrite"], "is the model itself"),
        (["heal", "DENSE", "-o", "OUT"], "has no plan in it"),
        (["prune", "DENSE", "-o", "OUT", "--remove", "1", "--heal", "--network", "ffn"], "not the network ffn"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(capsys, files, tmp_path, arguments, message):
    for place, name in zip(files, ("dense.gguf", "cut.gguf"), strict=True):
        shutil.copy(place, tmp_path / name)
    names = {"CUT": "cut.gguf", "OUT": "out.gguf", "DENSE": "dense.gguf", "FOLDER": TINY}
    _, err = run(capsys, *(names.get(each, each) for each in arguments), *TEXT, status=2)
    assert message in " ".join(err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "dense.gguf", "text.txt"]
