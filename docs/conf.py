"""The site of the documentation: `make docs` builds it with Sphinx."""

project = "cropscore"
author = "the authors of cropscore"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["tutorial/*.ipynb"]

# Headings have the anchors that GitHub gives them, so that links work in both places.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
# Code blocks are shell commands and trees of files, with words for values: nothing to parse.
highlight_language = "none"
smartquotes = False  # they would make one dash of the two before an option

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = "cropscore"
html_copy_source = False
html_show_sphinx = False
