"""The documentation site, which `make docs` builds: README and the pages beside this file, as they stand, and the API.

The source folder is the repository's, so that links between pages are the ones that its visitors follow.
"""

import re
from pathlib import Path
from typing import Any

project = "fusedoptim"
author = "the fusedoptim authors"
release = re.findall(r'^version = "(.*)"', Path(__file__).parents[1].joinpath("pyproject.toml").read_text(), re.M)[0]

root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "docs/*.rst", "**/README.md"]
exclude_patterns = ["build", ".*"]
NAVIGATION = {
    "Optimizers": ["sgd", "adam", "adamw", "more_optimizers", "from_torch", "api"],
    "Training": [
        "amp",
        "storage",
        "clipping",
        "averages",
        "schedulers",
        "in_backward",
        "checkpoints",
        "trainers",
        "scaling",
    ],
    "What to expect": ["inputs", "exact_classes", "robustness", "memory", "verify", "torch_versions", "benchmarks"],
    "The project": [
        "design",
        "measurements",
        "tried",
        "/CHANGELOG",
        "/CONTRIBUTING",
        "How the benchmarks measure </benchmarks/README>",
        "/tests/cuda_on_cpu/README",
        "/tests/torch_suite/README",
    ],
}

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 6  # named as GitHub names them
autodoc_member_order = "bysource"
autodoc_typehints = "description"
python_use_unqualified_type_names = True
napoleon_use_ivar = True
# torch's docstrings name labels of its own pages; ours are checked as myst.xref_missing
suppress_warnings = ["ref.ref"]
mathjax_path = "https://cdn.jsdelivr.net/npm/mathjax@4/tex-svg.js"  # paths in place of fonts, whose letters get cut off

html_theme = "furo"
html_title = f"fusedoptim {release}"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
pygments_dark_style = "github-dark"


def add_navigation(_app: Any, name: str, source: list[str]) -> None:
    """Put the tree of pages behind the README, whose visitors elsewhere would see it as text."""
    if name == root_doc:
        for caption, pages in NAVIGATION.items():
            paths = "\n".join(page if "/" in page else f"/docs/{page}" for page in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{paths}\n```\n"


def add_front_page(app: Any, error: Exception | None) -> None:
    """Lead from the site's address to the page that stands for it."""
    if error is None:
        Path(app.outdir, "index.html").write_text(f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n')


def tell_papers_apart(_app: Any, _kind: str, name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Of torch's docstrings several name one paper, by a target each, which are on one page here."""
    own = name.rpartition(".")[2]
    targets = [found[1] for line in lines if (found := re.match(r" *\.\. _(.+):$", line))]
    for target in targets:
        title = target.replace("\\", "")
        for i, line in enumerate(lines):
            line = line.replace(f".. _{target}:", f".. _{target} ({own}):")
            lines[i] = line.replace(f"`{title}`_", f"`{title} <{title} ({own})_>`_")


def setup(app: Any) -> None:  # noqa: D103
    app.connect("autodoc-process-docstring", tell_papers_apart)
    app.connect("source-read", add_navigation)
    app.connect("build-finished", add_front_page)
