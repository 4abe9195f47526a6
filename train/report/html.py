"""Pages to one HTML file: no scripts, nothing loaded from elsewhere; for a screen, a phone, paper, light and dark."""

import base64
import html
import io
import math
import os
import pathlib
import re
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from dl_core.errors import UsageError
from train.report.pages import Cell, Page, Section

MOST_PATHS = 4000  # a figure with more points than this is smaller as a bitmap

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1b1b; --faint: #6a6a6a; --rule: #dddddd; --paper: #ffffff; --link: #0059a3; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 1rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 0.5rem; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 0.75rem; padding-top: 0.5rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1.05rem; margin: 0 0 0.35rem; }
p { margin: 0 0 0.6rem; max-width: 68ch; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 0.5rem 0; }
a { color: var(--link); }
.sections { display: grid; gap: 1.75rem 2.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
section { min-width: 0; }
.wide { grid-column: 1 / -1; }
figure { margin: 0.25rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.22rem 1.1rem 0.22rem 0;
  border-bottom: 1px solid var(--rule); }
td { overflow-wrap: anywhere; }
th { font-weight: 600; border-bottom: 1px solid var(--faint); white-space: nowrap; }
.number { text-align: right; white-space: nowrap; overflow-wrap: normal; }
summary { cursor: pointer; color: var(--link); }
footer { margin-top: 3rem; color: var(--faint); font-size: 0.85rem; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --faint: #a0a0a0; --rule: #3a3a3a; --paper: #141414; --link: #7ab8f5; }
  .drawing { filter: invert(0.92) hue-rotate(180deg); }
  .picture { background: #ffffff; padding: 6px; border-radius: 4px; }
}
@media (max-width: 480px) { body { padding: 0.5rem 0.85rem 3rem; } h1 { font-size: 1.4rem; } }
@media print {
  :root { color-scheme: light; --ink: #000; --faint: #555; --rule: #ccc; --paper: #fff; --link: #000; }
  @page { margin: 16mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .sections { grid-template-columns: 1fr 1fr; gap: 6mm 8mm; }
  h2, h3 { break-after: avoid; }
  h2 { margin-top: 8mm; }
  section:not(.long), figure, tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  .drawing { filter: none; }
  a { text-decoration: none; }
}
"""


def write_html(path: str | os.PathLike[str], title: str, pages: Sequence[Page]) -> pathlib.Path:
    """Writes a report that needs nothing but itself; the file appears complete or not at all.

    Args:
      path: where; the folder must exist.
      title: of the whole report.
      pages: in order; any task may append its own.

    Returns:
      The path.
    """
    links = "".join(f'<a href="#page-{number}">{html.escape(page.title)}</a>' for number, page in enumerate(pages))
    body = "".join(_page(number, page) for number, page in enumerate(pages))
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n<nav>{links}</nav>\n{body}</body>\n</html>\n"
    )
    return _write(pathlib.Path(path), text)


def add_page(path: str | os.PathLike[str], page: Page) -> pathlib.Path:
    """Adds a page to a report that `write_html` has written, in the place of one with the same title.

    Args:
      path: of the report.
      page: to add.

    Returns:
      The path.

    Raises:
      UsageError: no report there.
    """
    path = pathlib.Path(path)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    titles = [html.unescape(title) for title in re.findall(r'<a href="#page-\d+">(.*?)</a>', text)]
    if not titles or "</nav>" not in text or not text.endswith("</body>\n</html>\n"):
        raise UsageError(f"{str(path)!r} is not a report of a run; train it first, or give its --workdir")
    if page.title in titles:
        number = titles.index(page.title)
        start = text.index(f'<h2 id="page-{number}">')
        end = text.find("<h2 id=", start + 1)
        end = len(text) - len("</body>\n</html>\n") if end < 0 else end
        return _write(path, text[:start] + _page(number, page) + text[end:])
    number = len(titles)
    link = f'<a href="#page-{number}">{html.escape(page.title)}</a></nav>'
    text = text.replace("</nav>", link, 1)
    return _write(path, text.removesuffix("</body>\n</html>\n") + _page(number, page) + "</body>\n</html>\n")


def _write(path: pathlib.Path, text: str) -> pathlib.Path:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
    return path


def _page(number: int, page: Page) -> str:
    sections = "".join(_section(section) for section in page.sections)
    return f'<h2 id="page-{number}">{html.escape(page.title)}</h2>\n<div class="sections">\n{sections}</div>\n'


def _section(section: Section) -> str:
    paragraphs = "".join(
        f"<p>{html.escape(paragraph.strip())}</p>\n"
        for paragraph in re.split(r"\n\s*\n", section.text)
        if paragraph.strip()
    )
    figure = _figure(section.figure, section.heading) if section.figure is not None else ""
    table = _table(section.table) if section.table is not None else ""
    content = f"{paragraphs}{figure}{table}"
    if section.folded:
        content = f"<details><summary>show</summary>\n{content}</details>\n"
    long = section.table is not None and len(section.table) > 25
    classes = " ".join(name for name, applies in (("wide", section.wide), ("long", long)) if applies)
    attribute = f' class="{classes}"' if classes else ""
    return f"<section{attribute}>\n<h3>{html.escape(section.heading)}</h3>\n{content}</section>\n"


def _figure(figure: Figure, heading: str) -> str:
    """Drawings as SVG, which stays sharp; photographs, and drawings of very many points, as PNG at twice the size."""
    images = [image for axes in figure.axes for image in axes.images]
    points = sum(len(line.get_xdata()) for axes in figure.axes for line in axes.lines)
    picture = len(images) > 1 or any(not axes.axison for axes in figure.axes)
    vector = not picture and points <= MOST_PATHS
    buffer = io.BytesIO()
    # A fixed salt and no date: the same run writes the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "report", "svg.fonttype": "path", "path.simplify_threshold": 0.5}):
        if vector:
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        else:
            figure.savefig(buffer, format="png", dpi=192)
    kind = "image/svg+xml" if vector else "image/png"
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return (
        f'<figure><img class="{"picture" if picture else "drawing"}" width="{width}" height="{height}" '
        f'alt="{html.escape(heading, quote=True)}" src="data:{kind};base64,{data}"></figure>\n'
    )


def _table(table: Sequence[Sequence[Cell]]) -> str:
    columns, *rows = table
    numeric = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(columns))]

    def line(tag: str, cells: Sequence[Cell]) -> str:
        shown = zip(cells, numeric, strict=True)
        return "".join(f"<{tag}{' class=number' * right}>{html.escape(_shown(cell))}</{tag}>" for cell, right in shown)

    head = f"<thead><tr>{line('th', columns)}</tr></thead>\n" if any(columns) else ""
    body = "".join(f"<tr>{line('td', row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table>\n{head}<tbody>\n{body}</tbody></table></div>\n'


def _is_number(cell: Cell) -> bool:
    """Numbers, and text that consists of decimals, such as "0.98 – 1.00" or "97.2 %"; "8" may be a class's name."""
    decimal = r"[-+−]?[\d,]*\.\d+(?: %)?"
    return not isinstance(cell, str) or bool(re.fullmatch(rf"{decimal}(?: – {decimal})?|—", cell))


def _shown(cell: Cell) -> str:
    if isinstance(cell, bool) or not isinstance(cell, float):
        return str(cell)
    return "—" if math.isnan(cell) else f"{cell:.4g}"
