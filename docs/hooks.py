"""For mkdocs: files outside of docs/ that pages link to are pages of the site too."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {
    "benchmarks/LOG.md": "log.md",
    "examples/notebook.ipynb": "notebook.ipynb",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    **{f"examples/plugins/{file.name}": f"plugins/{file.name}" for file in (ROOT / "examples/plugins").glob("*.*")},
}


def on_files(files: Any, config: Any) -> Any:
    """Add them."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to them go to their pages."""
    up = "../" * page.file.src_uri.count("/")
    if page.file.src_uri in PAGES.values():  # from outside of docs/
        markdown = markdown.replace("](../docs/", "](").replace("](docs/", "](")
    for source, name in PAGES.items():
        markdown = markdown.replace(f"](../{up}{source}", f"]({up}{name}")
    return markdown
