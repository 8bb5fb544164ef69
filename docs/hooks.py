"""What mkdocs does here besides: pages of the repository join the site as they are, and equations become MathML.

Pages live where the repository has them and link to each other as files, so that they can be read there too. The site's
root holds both ``docs`` and the repository's own pages: a link is followed on disk and written anew.
"""

import html
import os
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "experiments/benchmarks/*.md", "experiments/assets/*.png")
LINK = re.compile(r"\[([^\[\]]*)\]\(([^():#\s]+)(#[^()\s]*)?\)")
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
FUNCTION = re.compile(r"<mi>(log|cos|sin|arctan)</mi>")


def on_files(files, config):
    """Add the repository's pages and pictures under their own paths."""
    for path in sorted(path for pattern in PAGES for path in ROOT.glob(pattern)):
        place = path.relative_to(ROOT).as_posix()
        files.append(File(place, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links between files of the repository as links of the site; to a file that is not in it, its name alone."""
    here = Path(page.file.abs_src_path).parent

    def moved(link):
        text, target, anchor = link.groups("")
        path = (here / target).resolve()
        if not path.exists():
            return link[0]
        place = path.relative_to(ROOT / "docs" if path.is_relative_to(ROOT / "docs") else ROOT)
        if files.get_file_from_path(place.as_posix()) is None:
            return text
        return f"[{text}]({os.path.relpath(place, Path(page.file.src_uri).parent)}{anchor})"

    return LINK.sub(moved, markdown)


def on_page_content(content, page, config, files):
    """TeX as MathML: the browser draws it without scripts or fonts from elsewhere."""

    def drawn(equation):
        drawing = convert(html.unescape(equation[2]), display="block" if equation[1] == "div" else "inline")
        return FUNCTION.sub(r'\g<0><mspace width="0.167em" />', drawing)

    return EQUATION.sub(drawn, content)
