"""`streamliner report`: one page with everything in it, shown by a real browser; the same as Markdown."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from command import run
from streamliner.report.read import Results
from streamliner.report.render import as_html, as_markdown, lain
from streamliner.report.section import Section
from streamliner.report.sections.headline import headline_sections
from streamliner.report.sections.reproduce import reproduce_section

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


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


def test_the_page_contains_everything_and_loads_nothing(page):
    text = page[0].read_text()
    seen = Seen(text)
    assert seen.links == ["data:,"]
    assert seen.tags.count("script") == 1
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    assert len(text) < 2_000_000
    assert [heading.partition(":")[0] for heading in seen.headings] == [
        *("In short", "Summary", "Frontier", "Search", "Search", "Healing", "Evaluation", "Speed", "How to reproduce")
    ]
    assert seen.tags.count("table") >= 8
    assert len(seen.labels) == 9  # two searches, a matrix, the healing; perplexity twice, speed twice, parameters
    assert all(len(label) > 20 for label in seen.labels)


def test_numbers_are_those_of_the_files(page, folder, evaluation):
    html, markdown = (path.read_text() for path in page)
    pictures = sorted(path.name for path in (folder / "report.pictures").iterdir())
    assert re.findall(r"\]\(report\.pictures/(.*)\)", markdown) == pictures
    assert len(pictures) == 9
    frontier = json.loads((folder / "sleb" / "frontier.json").read_text())
    for text in (html, markdown):
        for point in frontier["points"]:
            assert f"{point['loss']:.4f}" in text
        for model in evaluation["models"]:
            assert f"{model['perplexity'][0]['perplexity']:.4g}" in text
        assert "streamliner prune" in text
        assert "python-docs" in text
        assert "As a draft" in text
    assert len(re.findall(r"^\| prompt \|", markdown, re.MULTILINE)) == len(evaluation["samples"])


def test_markdown_shows_text_as_text():
    section = Section("a [b](http://c)", text=["<img src=x> ![y](http://z)"])
    text = as_markdown([section], "pictures")
    assert r"a \[b\](http://c)" in text
    assert r"\<img src=x> \!\[y\](http://z)" in text


def test_a_card_says_what_was_lost_and_won(page, evaluation, benchmark):
    behind = evaluation["compared"][0]["loss_behind"]["python-docs:test"]
    for text in (path.read_text() for path in page):
        assert f"{behind['mean']:+.3f} ± {behind['standard_error']:.3f} nats on python-docs:test" in text.replace(
            "\\", ""
        )
        assert "2 of 12 blocks fewer" in text
        assert "times as fast" in text


def test_a_card_names_the_engine_of_each_speed_and_says_what_is_not_clear(evaluation, benchmark):
    """Two benchmarks of one model: the last must not hide the first."""
    (first,) = benchmark["compared"]
    slow = {**first, "prompt": first["prompt"] | {"speed_up": 1.2, "lowest": 1.1, "highest": 1.3}}
    slow["generation"] = first["generation"] | {"speed_up": 1.05, "lowest": 0.65, "highest": 1.06}
    served = {**benchmark, "engine": "vllm", "dtype": "bfloat16", "compared": [slow]}
    (section,) = headline_sections(Results(evaluations=[evaluation], benchmarks=[benchmark, served]))
    won = section.cards[0].won
    assert len([line for line in won if " in transformers, bfloat16: " in line]) == 2
    assert "prompt in vllm, bfloat16: 1.20 times as fast (1.10 to 1.30)" in won
    assert "generation in vllm, bfloat16: 1.05 times as fast (0.65 to 1.06), so not clearly faster" in won


def test_a_cut_that_prune_wrote_is_not_to_be_cut_again(evaluation):
    evaluation["models"][1]["method"] = "sleb"
    model = evaluation["models"][1]["model"]
    search = {"command": ["streamliner", "prune", "dense", "-o", model], "versions": {}}
    run = SimpleNamespace(files={"run": search})
    (table,) = reproduce_section(Results(runs=[run], evaluations=[evaluation])).tables
    assert not [row for row in table if row[0].startswith("streamliner cut")]
    (table,) = reproduce_section(Results(evaluations=[evaluation])).tables
    assert [row for row in table if row[0].startswith("streamliner cut")]


@pytest.mark.parametrize(
    ("increase", "verdict"), [(0.01, "Hardly"), (0.1, "A little"), (0.4, "Clearly"), (2, "Much"), (None, "Much")]
)
def test_the_verdict_follows_the_loss(evaluation, increase, verdict):
    for each in evaluation["compared"][0]["loss_behind"].values():
        each["mean"] = increase
    (section,) = headline_sections(Results(evaluations=[evaluation]))
    assert section.cards[0].verdict.startswith(verdict)


def test_a_wide_table_of_few_models_lies_on_its_side():
    names = [f"column {number}" for number in range(9)]
    table = [names, [str(number) for number in range(9)]]
    assert lain(table)[0] == ["column 0", "0"]
    assert lain(lain(table)) == lain(table), "a long one stays"


def test_samples_keep_their_lines():
    section = Section("a", tables=[[["x", "y"], ["a", "def f():\n    return | 1"]]])
    assert r"def f():<br>return \| 1" in as_markdown([section], "pictures")
    assert '<td class="long">def f():\n    return | 1</td>' in as_html([section])


def look(page, folder, size="1200,900"):
    """Open a page in Chromium; returns the lines on its console, and the screenshot."""
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


@needs_chromium
@pytest.mark.parametrize("size", ["1200,900", "390,800"])
def test_a_real_browser_reports_no_problem(page, tmp_path, size):
    """The page's policy forbids requests; the browser would report on its console that it stopped one."""
    console, shot = look(page[0], tmp_path, size)
    assert console == []
    assert shot.stat().st_size > 10_000


@needs_chromium
def test_another_script_would_not_run(page, tmp_path):
    """The policy names the one script of the page by its hash."""
    other = tmp_path / "other.html"
    other.write_text(page[0].read_text().replace("<body>", "<body><script>console.log('ran')</script>"))
    console, _ = look(other, tmp_path)
    assert any("Content Security Policy" in line for line in console)
    assert not any("ran" in line.split('"')[1] for line in console)


@needs_chromium
def test_a_click_on_a_head_sorts_the_table(page, tmp_path):
    rows = [["model", "value"], ["a", "1,000"], ["b", "20 ± 3"], ["c", "3"]]
    text = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", as_html([Section("x", tables=[rows])]))
    click = "<script>document.querySelectorAll('th')[1].click();</script></body>"
    clicking = tmp_path / "clicking.html"
    clicking.write_text(text.replace("</body>", click))
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")
    command = [CHROMIUM, *options, clicking.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert re.findall(r"<tr><td>(\w)</td>", done.stdout) == ["c", "b", "a"]


@needs_chromium
def test_a_request_would_be_seen(page, tmp_path):
    asking = tmp_path / "asking.html"
    asking.write_text(page[0].read_text().replace("<body>", '<body><img src="http://127.0.0.1:9/x.png">'))
    console, _ = look(asking, tmp_path)
    assert any("Content Security Policy" in line for line in console)


def test_the_command_refuses_what_it_should_not_overwrite(capsys, folder, tmp_path):
    out, _ = run(capsys, "report", folder / "sleb", "-o", tmp_path / "x.html")
    assert "x.html and" in " ".join(out.split())
    assert "--overwrite" in run(capsys, "report", folder / "sleb", "-o", tmp_path / "x.html", status=2)[1]
    assert "There is no run in" in run(capsys, "report", tmp_path, "-o", tmp_path / "y.html", status=2)[1]
    assert "not the name of an HTML file" in run(capsys, "report", folder / "sleb", "-o", tmp_path / "y", status=2)[1]
    assert not (tmp_path / "y.html").exists()
    for written in (tmp_path / "x.html", tmp_path / "x.md"):
        written.unlink()
    assert "x.pictures exists" in run(capsys, "report", folder / "sleb", "-o", tmp_path / "x.html", status=2)[1]


def test_pictures_of_an_earlier_report_are_removed(capsys, folder, tmp_path):
    """Those with a name that a report would choose, and no other file."""
    pictures = tmp_path / "x.pictures"
    pictures.mkdir()
    (pictures / "99-old.svg").touch()
    (pictures / "mine.svg").touch()
    run(capsys, "report", folder / "sleb", "-o", tmp_path / "x.html", "--overwrite")
    assert sorted(path.name for path in pictures.iterdir()) == ["01-frontier.svg", "02-search-sleb.svg", "mine.svg"]


def test_torch_is_not_loaded(folder, tmp_path):
    """It takes seconds, and a report needs no model."""
    code = (
        "import sys; from streamliner.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "report", folder / "sleb", folder / "benchmark.json"]
    done = subprocess.run([*command, "-o", tmp_path / "x.html"], check=True, capture_output=True, text=True)
    assert (tmp_path / "x.html").exists()
    assert done.stdout.splitlines()[-1] == "False"
