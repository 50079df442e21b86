"""How Sphinx makes the pages of docs/ into a site: `make docs`."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

project = "SecuriFile"
copyright = "the SecuriFile authors"
release = re.findall(r'^__version__ = "([^"]+)"$', (ROOT / "securifile/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)[0]

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
# Headings can be linked to as page.md#words-of-the-heading.
myst_heading_anchors = 4
# A picture of bytes or of a shell session is allowed not to be valid in the language it is coloured as.
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "alabaster"
html_title = f"SecuriFile {release}"
html_theme_options = {"description": "a highly available, distributed, encrypted file store", "page_width": "70rem"}
html_show_sourcelink = False
