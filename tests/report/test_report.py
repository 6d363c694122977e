"""`streamliner report`: one page with everything in it, seen by a real browser; the same as Markdown."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from command import run
from places import TINY
from streamliner.errors import OutputError
from streamliner.report.figures import Series, _log_ticks, _ticks, matrix, plot
from streamliner.report.read import Run, read_runs
from streamliner.report.render import as_html, as_markdown
from streamliner.report.section import Section, Table
from streamliner.report.sections.evaluations import evaluation_section
from streamliner.report.sections.frontiers import _evaluated, _speed, frontier_section
from streamliner.report.sections.searches import search_section
from streamliner.report.sections.summary import summary_section

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two searches, one of them healed, an evaluation and a benchmark."""
    path = tmp_path_factory.mktemp("report")
    import os
    import sys

    def streamliner(*arguments):
        command = [sys.executable, "-m", "streamliner", *map(str, arguments), "--quiet"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(path / "cache")}
        subprocess.run(command, check=True, capture_output=True, env=environment)

    short = ["--num-samples", "2", "--sequence-length", "64"]
    healing = ["--heal", "--tokens", "2k", "--heal-set", "batch_size=2", "--heal-set", "validation_windows=2"]
    streamliner("prune", TINY, "--method", "streamline", "--remove", "2", *short, *healing, "-o", path / "out")
    streamliner("search", TINY, "--remove", "2", *short, "-o", path / "sleb")
    texts = ["--perplexity", "python-docs:test", "--window", "64", "--max-windows", "3"]
    drafts = ["--as-draft-for", TINY, "--draft-prompts", "1", "--draft-tokens", "4", "--samples", "2"]
    streamliner("evaluate", path / "out", "--dense", TINY, *texts, *drafts, "-o", path / "evaluation.json")
    small = ["--prompt-tokens", "16", "--new-tokens", "2", "--repeats", "1"]
    streamliner("benchmark", path / "out", "--dense", TINY, *small, "-o", path / "benchmark.json")
    return path


@pytest.fixture(scope="module")
def page(folder):
    from streamliner.report.render import write_report

    sources = [folder / name for name in ("out.run", "sleb", "evaluation.json", "benchmark.json")]
    html, markdown, _ = write_report([str(source) for source in sources], folder / "report.html")
    return html, markdown


class Seen(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.labels, self.headings = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append(tag)
        values = dict(attributes)
        self.links += [values[name] for name in ("src", "href", "xlink:href", "data") if name in values]
        if tag == "svg":
            self.labels.append(values["aria-label"])

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def test_the_page_holds_everything_and_asks_for_nothing(page):
    text = page[0].read_text()
    seen = Seen(text)
    assert seen.links == ["data:,"]
    assert "script" not in seen.tags
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    assert len(text) < 2_000_000
    assert [heading.partition(":")[0] for heading in seen.headings] == [
        *("Summary", "Frontier", "Search", "Search", "Healing", "Evaluation", "Speed", "How to reproduce it")
    ]
    assert seen.tags.count("table") >= 8
    assert len(seen.labels) == 9  # two searches, a matrix, the healing; perplexity twice, speed twice, parameters
    assert all(len(label) > 20 for label in seen.labels)


def test_numbers_are_those_of_the_files(page, folder):
    html, markdown = (path.read_text() for path in page)
    pictures = sorted(path.name for path in (folder / "report.pictures").iterdir())
    assert re.findall(r"\]\(report\.pictures/(.*)\)", markdown) == pictures
    assert len(pictures) == 9
    frontier = json.loads((folder / "sleb" / "frontier.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for text in (html, markdown):
        for point in frontier["points"]:
            assert f"{point['loss']:.4f}" in text
        for model in evaluation["models"]:
            assert f"{model['perplexity'][0]['perplexity']:.4g}" in text
        assert "streamliner prune" in text
        assert "python-docs" in text
        assert "As a draft" in text
        assert text.count("begun with") == 2


def test_a_line_for_each_method(folder):
    """Models of one method and the dense one make a line; what a removal allows stands beside what it brought."""
    benchmark = json.loads((folder / "benchmark.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for value in (evaluation, benchmark):
        dense, cut = value["models"]
        value["models"] = [dense, cut | {"method": "a", "blocks": 8}, cut | {"method": "b"}, cut | {"method": "a"}]
        value["compared"] = value["compared"] * 3
    perplexity, parameters = _evaluated(evaluation)[0], frontier_section([], [evaluation], []).figures[-1]
    assert [perplexity.svg.count(each) for each in ("<polyline", "<circle", "<li>")] == [2, 5, 2]
    losses = [evaluation["models"][place]["perplexity"][0]["perplexity"] for place in (0, 1)]
    # 12 blocks of the dense one; the 3 of the streamline run became 1, and 4 are gone where 8 are left.
    assert f"a: 0 removed {losses[0]:.4g}, 2 removed {losses[1]:.4g}, 4 removed {losses[1]:.4g}" in perplexity.alt
    assert f"0 removed {evaluation['models'][0]['parameters'] / 1e6:.4g}" in parameters.alt
    speed = _speed(benchmark, "prompt")
    assert speed.svg.count('class="line s2 dashed"') == 1
    allowed = benchmark["compared"][0]["prompt"]["allowed_by_time"]
    assert f"what the removal allows: 0 removed 1, 2 removed {allowed:.4g}" in speed.alt


def test_the_parameters_of_all_results_are_one_line_for_each_dense_model(folder):
    """A second evaluation, of other cuts, adds to it; one of cuts of another model has a picture of its own."""
    first = json.loads((folder / "evaluation.json").read_text())
    second, other = (json.loads(json.dumps(first)) for _ in range(2))
    second["models"][1] |= {"model": "smaller", "blocks": 7, "parameters": 5_000_000}
    other["models"][0]["model"] = "another"
    figures = [each for each in frontier_section([], [first, second, other], []).figures if "Parameters" in each.alt]
    assert len(figures) == 2
    assert ", 5 removed 5" in figures[0].alt
    assert "Parameters of another;" in figures[1].alt


def test_cuts_by_hand_are_no_line(folder):
    evaluation = json.loads((folder / "evaluation.json").read_text())
    dense, cut = evaluation["models"]
    evaluation["models"] = [dense, *(cut | {"method": "manual", "model": f"{name}/out"} for name in "ab")]
    assert "a/out: 0 removed" in _evaluated(evaluation)[0].alt


def test_a_training_that_goes_on_is_read(folder, tmp_path):
    shutil.copytree(folder / "out.run", tmp_path / "run")
    history = tmp_path / "run" / "healing" / "history.jsonl"
    history.write_text(history.read_text() + '{"step": 9')
    assert len(read_runs([str(tmp_path / "run")])[0]) == 2


def test_markdown_shows_text_as_text():
    section = Section("a [b](http://c)", text=["<img src=x> ![y](http://z)"])
    text = as_markdown([section], "pictures")
    assert r"a \[b\](http://c)" in text
    assert r"\<img src=x> \!\[y\](http://z)" in text


def test_errors_stay_with_their_points():
    """The middle point cannot be drawn; the last one's bar is its own, from 2 to 4."""
    picture = plot([Series("a", [(0, 1.0), (1, math.inf), (2, 3.0)], [0.1, 0.2, 1.0])], "x", "y", "a", "b").svg
    dots = [float(y) for y in re.findall(r'<circle[^>]*cy="([\d.]+)"', picture)]
    bars = [(float(a), float(b)) for a, b in re.findall(r'"error s0"[^>]*y1="([\d.]+)" y2="([\d.]+)"', picture)]
    assert [(a + b) / 2 for a, b in bars] == pytest.approx(dots, abs=0.1)
    assert (bars[1][0] - bars[1][1]) / (bars[0][0] - bars[0][1]) == pytest.approx(10, rel=0.05)


def test_searches_of_one_method_are_one_line(folder):
    (run,), _, _ = read_runs([str(folder / "sleb")])
    short = json.loads(json.dumps(run.files))
    short["frontier"]["points"].pop()
    (figure,) = frontier_section([Run("short", short, []), run], [], []).figures
    assert "2 removed" in figure.alt
    assert "(short)" not in figure.alt


def test_the_summary_brings_results_together(folder):
    evaluation, benchmark = (json.loads((folder / f"{name}.json").read_text()) for name in ("evaluation", "benchmark"))
    (table,) = summary_section([evaluation], [benchmark]).tables
    head, dense, cut = table.rows
    assert head[4:] == ["perplexity, python-docs:test", "prompt speed-up", "generation speed-up", "kept as a draft"]
    assert dense[1:4] == ["", "12", f"{evaluation['models'][0]['parameters'] / 1e6:.4g}"]
    assert dense[5:] == ["", "", ""]
    assert cut[1:3] == ["streamline, healed", "10"]
    assert float(cut[5]) == pytest.approx(benchmark["compared"][0]["prompt"]["speed_up"], abs=0.006)
    assert cut[4] == f"{evaluation['models'][1]['perplexity'][0]['perplexity']:.4g}"
    assert summary_section([], []).tables == []
    other = json.loads(json.dumps(evaluation))
    other["models"][1]["perplexity"][0] |= {"sha256": "of other windows", "perplexity": 5}
    (table,) = summary_section([evaluation, other], []).tables
    heads = [f"{head[4]} (3 windows of 64, bfloat16) #{number}" for number in (1, 2)]
    assert [row[4:6] for row in table.rows] == [heads, [dense[4], ""], [cut[4], "5"]]


def test_headings_tell_apart_what_was_measured_otherwise(folder):
    evaluation, benchmark = (json.loads((folder / f"{name}.json").read_text()) for name in ("evaluation", "benchmark"))
    other, longer = json.loads(json.dumps(evaluation)), json.loads(json.dumps(benchmark))
    for model in other["models"]:
        model["perplexity"][0] |= {"sha256": "other", "window": 32, "windows": 9, "stride": 31}
    longer["settings"]["prompt_tokens"] = 99
    (table,) = summary_section([evaluation, other], [benchmark, longer]).tables
    assert len(set(table.rows[0])) == len(table.rows[0])
    assert "perplexity, python-docs:test (9 windows of 32, bfloat16)" in table.rows[0]
    assert "prompt speed-up (99 tokens, bfloat16)" in table.rows[0]
    assert "9 windows of 32, bfloat16" in _evaluated(other)[0].caption


def test_a_search_that_is_not_finished_says_so(capsys, folder, tmp_path):
    shutil.copytree(folder / "sleb", tmp_path / "begun")
    for name in ("plan.json", "frontier.json"):
        (tmp_path / "begun" / name).unlink()
    run(capsys, "report", tmp_path / "begun", "-o", tmp_path / "x.html")
    assert "Not finished" in (tmp_path / "x.md").read_text()
    _, err = run(capsys, "cut", TINY, "--plan", tmp_path / "begun", "-o", tmp_path / "cut", status=2)
    assert "is not finished" in err


def test_what_is_not_finite_is_left_out(folder):
    """An overflow in half precision is null in JSON: no picture breaks, and tables say so."""
    (found,), _, _ = read_runs([str(folder / "sleb")])
    files = json.loads(json.dumps(found.files))
    candidates = files["frontier"]["points"][0]["candidates"]
    block, *others = candidates
    candidates[block] = None
    files["frontier"]["points"][1]["candidates"] = dict.fromkeys(others)
    files["similarity"] = {"cosine": [[None, 0.5], [0.5, 1.0]]}
    scores, picture = search_section(Run("x", files, [])).figures
    assert f"of {len(others)} candidates" in scores.alt
    assert picture.parts.count('class="cell"') == 3
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["drafts"][0]["greedy"] |= {"acceptance_rate": None, "standard_error": None}
    assert "not finite" in as_markdown([evaluation_section(evaluation), summary_section([evaluation], [])], "p")


def test_the_summary_does_not_mix(folder):
    """What was measured on another machine, or against another dense model, stands in a column of its own."""
    evaluation, benchmark = (json.loads((folder / f"{name}.json").read_text()) for name in ("evaluation", "benchmark"))
    elsewhere, of_another = json.loads(json.dumps(benchmark)), json.loads(json.dumps(evaluation))
    elsewhere["hardware"]["processor"] = "another"
    of_another["drafts"][0]["parent"] = "another"
    (table,) = summary_section([evaluation, of_another], [benchmark, elsewhere]).tables
    for label in ("prompt speed-up", "generation speed-up", "kept as a draft"):
        assert len([head for head in table.rows[0] if head.startswith(label)]) == 2


def test_samples_keep_their_lines():
    section = Section("a", tables=[Table([["x", "y"], ["a", "def f():\n    return | 1"]])])
    assert r"def f():<br>return \| 1" in as_markdown([section], "pictures")
    assert '<td class="long">def f():\n    return | 1</td>' in as_html([section])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "not a result of evaluate or benchmark"),
        ('{"removed": [1]}', "not a result of evaluate or benchmark"),
        ('{"schema_version": 1, "models": [], "compared": []}', "this release reads"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(OutputError, match=message):
        read_runs([str(tmp_path / "x.json")])


def look(page, folder, size="1200,900"):
    """Open a page in Chromium; returns what its console said, and the picture."""
    shot = folder / "page.png"
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
            *("--enable-logging=stderr", f"--window-size={size}", f"--user-data-dir={folder / 'profile'}"),
            *(f"--screenshot={shot}", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], shot


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("size", ["1200,900", "390,800"])
def test_a_real_browser_shows_it_without_a_word(page, tmp_path, size):
    """The page's own policy forbids requests, and the browser would say on its console that it stopped one."""
    said, shot = look(page[0], tmp_path, size)
    assert said == []
    assert shot.stat().st_size > 10_000


def test_a_picture_stands_alone():
    """Well-formed, with its colours and legend, so that it can be shown anywhere."""
    names = [f"a < series with a long name, number {i}" for i in range(4)]
    figure = plot([Series(name, [(0, 1.0), (1, 2.0)]) for name in names], "x", "y", "what it shows", "caption")
    root = ElementTree.fromstring(figure.file)
    svg = "{http://www.w3.org/2000/svg}"
    assert [text.text for text in root.iter(f"{svg}text") if text.get("class") == "name"] == names
    low = [float(text.get("y", 0)) for text in root.iter(f"{svg}text")]
    assert max(low) < float(root.get("height"))
    assert root.get("aria-label") == "what it shows"
    (style,) = root.iter(f"{svg}style")
    assert set(re.findall(r"var\((--\w+)\)", style.text)) <= set(re.findall(r"(--\w+):", style.text))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_request_would_be_seen(page, tmp_path):
    asking = tmp_path / "asking.html"
    asking.write_text(page[0].read_text().replace("<body>", '<body><img src="http://127.0.0.1:9/x.png">'))
    said, _ = look(asking, tmp_path)
    assert any("Content Security Policy" in line for line in said)


def test_on_the_command_line(capsys, folder, tmp_path):
    out, _ = run(capsys, "report", folder / "sleb", "-o", tmp_path / "x.html")
    assert "x.html and" in " ".join(out.split())
    assert "--overwrite" in run(capsys, "report", folder / "sleb", "-o", tmp_path / "x.html", status=2)[1]
    assert "There is no run in" in run(capsys, "report", tmp_path, "-o", tmp_path / "y.html", status=2)[1]
    assert "not the name of an HTML file" in run(capsys, "report", folder / "sleb", "-o", tmp_path / "y", status=2)[1]
    assert not (tmp_path / "y.html").exists()
    for written in (tmp_path / "x.html", tmp_path / "x.md"):
        written.unlink()
    assert "x.pictures exists" in run(capsys, "report", folder / "sleb", "-o", tmp_path / "x.html", status=2)[1]
    (tmp_path / "x.pictures" / "99-old.svg").touch()
    (tmp_path / "x.pictures" / "mine.svg").touch()
    run(capsys, "report", folder / "sleb", "-o", tmp_path / "x.html", "--overwrite")
    names = sorted(path.name for path in (tmp_path / "x.pictures").iterdir())
    assert names == ["01-frontier.svg", "02-search-sleb.svg", "mine.svg"]


def test_ticks_are_round_and_within():
    assert _ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert _ticks(0.0, 0.31) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert _ticks(3, 3) == [3]
    assert _log_ticks(0, 2) == [1, 2, 5, 10, 20, 50, 100]
    assert _log_ticks(1.0, 1.2) == pytest.approx([10, 11, 12, 13, 14, 15])


def test_pictures_leave_out_what_cannot_be_drawn():
    nothing = plot([Series("a", [(0, float("nan"))])], "x", "y", "alt", "caption")
    assert nothing.svg == ""
    some = plot([Series("a", [(0, 1.0), (1, float("inf")), (2, 3.0)])], "x", "y", "a < b", "caption", log=True)
    assert some.svg.count("<circle") == 2
    assert 'aria-label="a &lt; b"' in some.svg
    assert matrix([[1.0, 0.5], [0.5, 1.0]], [1], "alt", "caption").svg.count('class="cell"') == 4
