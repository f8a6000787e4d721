"""What a person looks at: tables as text, Markdown and LaTeX, contact sheets, and report.html."""

from __future__ import annotations

import contextlib
import html
import importlib.resources
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lljax import images
from lljax.errors import InputError
from lljax.evaluation.baselines import BASELINES
from lljax.evaluation.metrics import Metric

if TYPE_CHECKING:
    from lljax.evaluation.evaluate import Results

LOW, REFERENCE = "low", "reference"  # labels of the given pictures beside the systems' names
THUMBNAIL = 320  # px, longest side of the small pictures that report.html shows in rows
_MARK = '<meta name="generator" content="lljax">'  # a report.html with it may be replaced


# Tables: one content, four ways to write it down.


class Cell(NamedTuple):
    """A table's cell; what does not apply is "".

    Attributes:
      value: the number.
      spread: standard deviation over pictures.
      interval: 95 %, in brackets.
      count: pictures better / worse, and the test's p.
      best: whether the value is bold.
    """

    value: str
    spread: str = ""
    interval: str = ""
    count: str = ""
    best: bool = False

    @property
    def small(self) -> str:
        """All but the value."""
        spread = f"\u00b1 {self.spread}" if self.spread else ""
        return " ".join(filter(None, (spread, self.interval, self.count)))

    @property
    def text(self) -> str:
        """Everything."""
        return " ".join(filter(None, (self.value, self.small)))


class Section(NamedTuple):
    """A table: a title, a card a column, and (system, a cell a column) a row."""

    title: str
    cards: Sequence[Metric]
    rows: list[tuple[str, list[Cell]]]


class Content(NamedTuple):
    """Tables, what they are over, and what a reader of them has to know."""

    scope: str
    sections: list[Section]
    notes: list[str]


_BOLD = "bold: better than every other row, no paired 95 % interval has a 0 in it"
_TEXT, _LATEX_COLUMNS = 100, 4  # widest: characters of a line, columns of a LaTeX table


def _content(results: Results) -> Content:
    """Scores, scores after gt-mean, then the same two as differences from the first row."""
    plain, corrected = ([card for card in results.metrics if card.gt_mean == wanted]
                        for wanted in (False, True))
    first, *others = results.systems
    scaled = "after scaling each output to its reference's mean grey"
    scores = [Section(title, cards, [(name, [_score_cell(results, name, card) for card in cards])
                                     for name in results.systems])
              for title, cards in (("scores", plain),
                                   (f"{scaled} (never compare with the above)", corrected))]
    minus = (f"each row minus {first}, paired by picture; w/l: better on w, worse on l; p: "
             "Wilcoxon signed-rank")
    differences = [
        Section(title, cards, [(name, [_difference_cell(results, name, first, card)
                                       for card in cards]) for name in others])
        for title, cards in ((minus, plain), (f"the same {scaled}", corrected)) if others]
    notes = []
    infinite = dict.fromkeys(card.infinite for k, card in enumerate(results.metrics)
                             if np.isinf(results.values[..., k]).any())
    if infinite:
        notes.append(f"inf (k of n): {' or '.join(infinite)}")
    for key, reason in results.info.get("not_computed", {}).items():
        notes.append(f"{key} is not computed: {reason}")
    if others:
        notes.append("p is two-sided and not corrected for the "
                     f"{len(others) * len(results.metrics)} comparisons made here")
        if len(results.names) < 6:
            notes.append("with fewer than 6 pictures p cannot be under 0.05")
    sections = [section for section in scores + differences if section.cards]
    return Content(_caption(results), sections, notes)


def _score_cell(results: Results, system: str, card: Metric) -> Cell:
    summary = results.summary(system)[card.key]
    if summary.n_inf:
        return Cell(f"inf ({summary.n_inf} of {summary.n})")
    spread = "" if summary.sd is None else f"{summary.sd:.{card.digits}f}"
    return Cell(f"{summary.mean:.{card.digits}f}", spread, brackets(summary.ci95, card.digits),
                best=results.is_best(system, card.key))


def _difference_cell(results: Results, system: str, first: str, card: Metric) -> Cell:
    difference = results.difference(system, first)[card.key]
    value = "inf" if difference.mean is None else f"{difference.mean:+.{card.digits}f}"
    p = "" if difference.p is None else f" {_p(difference.p)}"
    return Cell(value, interval=brackets(difference.ci95, card.digits),
                count=f"{difference.wins}/{difference.losses}{p}")


def _p(value: float) -> str:
    return "p<0.0001" if value < 1e-4 else f"p={value:.2g}"


def brackets(ci95: tuple[float, float] | None, digits: int) -> str:
    """An interval as text, "" without one."""
    return "" if ci95 is None else "[{:.{d}f}, {:.{d}f}]".format(*ci95, d=digits)


def _caption(results: Results) -> str:
    source = results.info.get("source")
    n, total = len(results.names), results.info.get("pictures_in_source", len(results.names))
    shown = f"{n} pictures" if n == total else f"the first {n} of {total} pictures"
    shown += f" of {source}" if source else ""
    return shown + ("; mean \u00b1 sd [95 % bootstrap interval of the mean] over pictures"
                    if n > 1 else "; no interval")


def _notes(content: Content) -> list[str]:
    """Notes for a table that can have bold values."""
    bold = any(cell.best for section in content.sections for _, row in section.rows
               for cell in row)
    return [_BOLD] * bold + content.notes


def table(results: Results) -> str:
    """The results as fixed-width text: scores, those after gt-mean, paired differences."""
    return text_tables(_content(results))


def text_tables(content: Content) -> str:
    """Tables as fixed-width text; columns that do not fit beside the others stand below them."""
    lines = [f"{content.scope}; (up): higher is better"]
    for section in content.sections:
        lines += ["", f"{section.title}:"]
        names = ["", *(name for name, _ in section.rows)]
        columns = [[card.heading, *(cells[i].text for _, cells in section.rows)]
                   for i, card in enumerate(section.cards)]
        for block in _blocks(names, columns):
            widths = [max(map(len, column)) for column in block]
            lines += ["  ".join(cell.ljust(width) for cell, width in
                                zip(row, widths, strict=True)).rstrip()
                      for row in zip(*block, strict=True)]
        lines.append("  " + " ".join(card.protocol for card in section.cards))
    return "\n".join([*lines, *content.notes])


def _blocks(names: list[str], columns: list[list[str]]) -> list[list[list[str]]]:
    """The columns in groups that fit into a line, each with the names before it."""
    blocks: list[list[list[str]]] = []
    for column in columns:
        together = [*blocks[-1], column] if blocks else []
        if together and sum(2 + max(map(len, one)) for one in together) - 2 <= _TEXT:
            blocks[-1] = together
        else:
            blocks.append([names, column])
    return blocks


def markdown(results: Results) -> str:
    """The results as Markdown tables, each with its protocols below it."""
    return markdown_tables(_content(results))


def markdown_tables(content: Content) -> str:
    """Tables as Markdown."""
    def line(cells: Sequence[str]) -> str:
        safe = (_one_line(cell).replace("|", "\\|").replace("<", "&lt;") for cell in cells)
        return "| " + " | ".join(safe) + " |"

    blocks = []
    for section in content.sections:
        rows = [line(["system", *(card.heading for card in section.cards)]),
                "|---" * (len(section.cards) + 1) + "|"]
        rows += [line([name, *(f"**{cell.text}**" if cell.best else cell.text for cell in cells)])
                 for name, cells in section.rows]
        protocols = ", ".join(f"`{card.protocol}`" for card in section.cards)
        blocks.append("\n".join([f"{_sentence(section.title)}:", "", *rows, "",
                                 f"Protocols: {protocols}."]))
    notes = "; ".join([f"{content.scope}; (up): higher is better", *_notes(content)])
    return "\n\n".join([*blocks, f"{_sentence(notes)}."])


def latex(results: Results) -> str:
    """The results as LaTeX tables (booktabs), to be included in a paper.

    A value is bold where its row is better than every other row in pairs (see
    `Results.is_best`); a column in which the pictures do not settle that has no bold value.
    """
    return latex_tables(_content(results))


def latex_tables(content: Content) -> str:
    """Tables as LaTeX (booktabs); one with too many columns for a page becomes several."""
    blocks = [r"% \usepackage{booktabs}"]
    notes = escape_latex(_sentence("; ".join(
        [f"{content.scope}; arrows point to the better side", *_notes(content)])))
    for section in content.sections:
        parts = -(-len(section.cards) // _LATEX_COLUMNS)
        size = -(-len(section.cards) // parts)  # as equal as can be
        for start in range(0, len(section.cards), size):
            blocks.append(_latex_table(section, slice(start, start + size), notes))
    return "\n\n".join(blocks)


def _latex_table(section: Section, part: slice, notes: str) -> str:
    cards = section.cards[part]
    head = " & ".join(["System", *(_latex_heading(card) for card in cards)])
    rows = [" & ".join([escape_latex(name), *map(_latex_cell, cells[part])]) + r" \\"
            for name, cells in section.rows]
    after = sum(name not in BASELINES for name, _ in section.rows)
    if 0 < after < len(rows):
        rows.insert(after, r"\midrule")
    protocols = ", ".join(rf"\texttt{{{escape_latex(card.protocol)}}}" for card in cards)
    title = escape_latex(_sentence(section.title))
    return "\n".join([
        r"\begin{table}", r"\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{l{'r' * len(cards)}}}",
        r"\toprule", rf"{head} \\", r"\midrule", *rows, r"\bottomrule", r"\end{tabular}",
        rf"\caption{{{title}. {notes}. Protocols: {protocols}.}}", r"\end{table}"])


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
          "\u00b1": r"$\pm$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
          '"': "''",
          **{c: f"\\{c}" for c in "&%$#_{}"}}


def escape_latex(text: str) -> str:
    """Text that LaTeX shows as it is; line breaks become spaces."""
    return "".join(_LATEX.get(c, c) for c in _one_line(text))


def _latex_heading(card: Metric) -> str:
    arrow = {"up": r"$\uparrow$", "down": r"$\downarrow$", "one": r"$\to 1$"}[card.better]
    return " ".join(filter(None, (escape_latex(card.title), escape_latex(card.unit), arrow)))


def _latex_cell(cell: Cell) -> str:
    value, small = (part.replace("-", "$-$").replace("\u00b1", r"$\pm$").replace("<", "$<$")
                    for part in (cell.value, cell.small))
    shown = rf"\textbf{{{value}}}" if cell.best else value
    return shown + (rf" {{\scriptsize {small}}}" if small else "")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _sentence(text: str) -> str:
    return _one_line(text[:1].upper() + text[1:])


# Pictures.


def contact_sheet(columns: Mapping[str, Sequence[np.ndarray]], width: int = 320) -> np.ndarray:
    """Pictures side by side, one column a label, one row a scene.

    Args:
      columns: label -> pictures uint8 [H, W, 3], equally many each; those of a row share H and W.
      width: of a column, px.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: columns of unequal length, or none.
    """
    lengths = {label: len(pictures) for label, pictures in columns.items()}
    if not lengths or len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"every column needs the same number of pictures, at least 1: {lengths}")
    gap, bar = 6, 22
    rows = [max(1, round(width * picture.shape[0] / picture.shape[1]))
            for picture in next(iter(columns.values()))]
    sheet = Image.new("RGB", (len(columns) * (width + gap) + gap,
                              bar + sum(height + gap for height in rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, (label, pictures) in enumerate(columns.items()):
        left, top = gap + column * (width + gap), bar
        draw.text((left, 3), label, "black", font)
        for picture, height in zip(pictures, rows, strict=True):
            scaled = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(scaled, (left, top))
            top += height + gap
    return np.asarray(sheet)


def shrink(picture: np.ndarray, width: int = 320) -> np.ndarray:
    """A picture uint8 [H, W, 3] at the width of a contact sheet's column."""
    size = (width, max(1, round(width * picture.shape[0] / picture.shape[1])))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def spread(count: int, shown: int) -> list[int]:
    """At most `shown` indices spread over range(count), drifting through each stride.

    Records often come in groups (one scene in several exposures): equal strides would show the
    same member of each.
    """
    shown = min(shown, count)
    return [i * count // shown + i % (count // shown) for i in range(shown)]


def write_png(path: str, picture: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] as a PNG."""
    Image.fromarray(picture).save(path, "PNG")


class Pictures:
    """The pictures of an evaluation as files, written while it runs: none is enhanced twice.

    `with Pictures(out, names, labels) as pictures` collects them in a temporary folder of `out`,
    which `place` renames to `out`/pictures; without it nothing is left behind. Two files each:

    * thumbnails/<label>/<name>.jpg: longest side at most `THUMBNAIL` px; what the page shows in
      rows, so that it stays light whatever the pictures are;
    * <label>/<name>.png for systems: exactly the pixels that were scored, for other programs too.
      Low-light pictures, references and baselines are there to be looked at: JPEG, quality 95.

    Attributes:
      labels: "low", the systems, "reference" if there are references; what "identity" returns is
        not written again, its files are those of "low".
      names: the pictures' names.
      sizes: [i] is (width, height) in px.
    """

    def __init__(self, out: str, names: Sequence[str], systems: Sequence[str],
                 references: bool = True):
        self.out, self.names = out, list(names)
        self.labels = [LOW, *systems, *([REFERENCE] if references else [])]
        self.sizes: list[tuple[int, int]] = [(0, 0)] * len(self.names)
        written = [label for label in self.labels if label != "identity"]
        self._folders = dict(zip(written, _file_names(["thumbnails", *written])[1:], strict=True))
        self._files = _file_names([os.path.splitext(name)[0] for name in self.names])
        self._folder = ""

    def __enter__(self) -> Pictures:
        """Makes the temporary folder.

        Raises:
          InputError: `out` cannot be written to, or has a folder of pictures that no report made.
        """
        place = os.path.join(self.out, "pictures")
        if os.path.lexists(place) and not _is_report(os.path.join(self.out, "report.html")):
            raise InputError(f"{place} is there already and not of a report, so it is left alone; "
                             "choose another folder for the report")
        self._made = not os.path.lexists(self.out)
        with writing(self.out):
            os.makedirs(self.out, exist_ok=True)
            self._folder = tempfile.mkdtemp(prefix=".pictures.", suffix=".tmp", dir=self.out)
            os.chmod(self._folder, 0o755)  # mkdtemp's 0o700 would hide a shared report's pictures
            for label in self._folders:
                for path in (self.thumbnail(label, 0), self.full(label, 0)):
                    os.makedirs(os.path.dirname(self._at(path)), exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        """Removes the temporary folder if it was not placed."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._made:
            with contextlib.suppress(OSError):  # not empty: the results are in it
                os.rmdir(self.out)

    def thumbnail(self, label: str, index: int) -> str:
        """Address of the small picture, relative to the report; safe to write in HTML."""
        return f"pictures/thumbnails/{self._stem(label, index)}.jpg"

    def full(self, label: str, index: int) -> str:
        """Address of the picture in full size, relative to the report; safe to write in HTML."""
        copy = label in (LOW, REFERENCE) or label in BASELINES
        return f"pictures/{self._stem(label, index)}.{'jpg' if copy else 'png'}"

    def add(self, label: str, index: int, pixels: np.ndarray) -> None:
        """Writes uint8 [H, W, 3], the picture of that label and index."""
        if label == "identity":
            return
        self.sizes[index] = (pixels.shape[1], pixels.shape[0])
        images.write(self._at(self.full(label, index)), images.Picture(pixels))
        small = Image.fromarray(pixels)
        small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        with writing(self.out):
            small.save(self._at(self.thumbnail(label, index)), "JPEG", quality=80)

    def place(self) -> None:
        """Gives the folder its name; the pictures of an earlier report there go away."""
        place = os.path.join(self.out, "pictures")
        with writing(self.out):
            if os.path.lexists(place):
                os.rename(place, f"{self._folder}/earlier")
            os.rename(self._folder, place)
            shutil.rmtree(os.path.join(place, "earlier"), ignore_errors=True)

    def _stem(self, label: str, index: int) -> str:
        return f"{self._folders[LOW if label == 'identity' else label]}/{self._files[index]}"

    def _at(self, path: str) -> str:
        return os.path.join(self._folder, os.path.relpath(path, "pictures"))


def _is_report(path: str) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return _MARK in file.read(2000)
    except OSError:
        return False


def _file_names(names: Sequence[str]) -> list[str]:
    """Names that are safe in files and addresses, one each, as near to the given as can be."""
    safe, taken = [], set()
    for i, name in enumerate(names):
        short = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:80] or str(i)
        while short.lower() in taken:  # some file systems know no capitals
            short += f"_{i}"
        taken.add(short.lower())
        safe.append(short)
    return safe


def write_texts(out: str, texts: Mapping[str, str]) -> None:
    """Writes text files (name -> content) into `out`, each whole or not at all.

    Raises:
      InputError: the folder cannot be made or written to.
    """
    with writing(out):
        os.makedirs(out, exist_ok=True)
        for name, text in texts.items():
            with images.atomic(os.path.join(out, name)) as file:
                # A file name need not be UTF-8.
                file.write(text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def writing(out: str) -> Iterator[None]:
    """What goes wrong with files while writing into the folder `out` is an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write results into {out!r}: {error.strerror or error}"
                         ) from error


# report.html: the template has the looks and the moving parts, this has the content.


def write_report(results: Results, pictures: Pictures, out: str) -> None:
    """Writes report.html into `out`; it opens from the file system and fetches nothing.

    Args:
      results: the scores; all numbers of the page are these.
      pictures: placed in `out`.
      out: an existing folder.

    Raises:
      InputError: the file cannot be written.
    """
    template = importlib.resources.files(__package__).joinpath("report.html").read_text("utf-8")
    content = _content(results)
    caption = _sentence(f"{content.scope}; arrows point to the better side")
    parts = {"mark": _MARK, "caption": escape(caption),
             "notes": escape("; ".join(_notes(content))),
             "tables": _html_tables(content),
             "plots": "\n".join(_score_plot(results, card) for card in results.metrics),
             "differences": _difference_plots(results),
             "pictures": _html_pictures(results, pictures), "info": _html_info(results),
             "data": _data(results, pictures)}
    # One pass: what a part contains is never taken for a place to fill.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    with writing(out), images.atomic(os.path.join(out, "report.html")) as file:
        file.write(page.encode("utf-8", "backslashreplace"))


def escape(text: str) -> str:
    """Text for HTML, inside tags and quoted attributes alike."""
    return html.escape(text, quote=True)


def _html_tables(content: Content) -> str:
    blocks = []
    for k, section in enumerate(content.sections):
        head = "".join(f'<th scope="col">{_html_heading(card)}</th>' for card in section.cards)
        rows = []
        for name, cells in section.rows:
            body = "".join(
                f'<td{" class=best" if cell.best else ""}><span>{escape(cell.value)}</span> '
                f"<small>{escape(cell.small)}</small></td>"
                for cell in cells)
            kind = ' class="baseline"' if name in BASELINES else ""
            rows.append(f'<tr{kind}><th scope="row">{escape(name)}</th>{body}</tr>')
        protocols = " ".join(f"<code>{escape(card.protocol)}</code>" for card in section.cards)
        corrected = ' class="corrected"' if section.cards[0].gt_mean else ""
        title = escape(_sentence(section.title))
        blocks.append(
            f'<h3 id="table-{k}">{title}</h3>\n'
            f'<div class="scroll" role="region" tabindex="0" aria-labelledby="table-{k}">'
            f'<table{corrected}><thead><tr><th scope="col">system</th>{head}</tr></thead>\n'
            "<tbody>" + "\n".join(rows) + "</tbody></table></div>\n"
            f'<p class="protocols">{protocols}</p>')
    return "\n".join(blocks)


def _html_heading(card: Metric) -> str:
    arrow, word = {"up": ("\u2191", "higher"), "down": ("\u2193", "lower"),
                   "one": ("\u21921", "nearer to 1")}[card.better]
    name = " ".join(filter(None, (card.title, card.unit)))
    return f'{escape(name)} <abbr title="{word} is better">{arrow}</abbr>'


class _Band(NamedTuple):
    """One system's values in a plot."""

    name: str
    label: str  # the mean, as text
    values: np.ndarray  # [picture]
    mean: float | None
    ci95: tuple[float, float] | None


def _score_plot(results: Results, card: Metric) -> str:
    bands = []
    for name in results.systems:
        cell, summary = _score_cell(results, name, card), results.summary(name)[card.key]
        label = " ".join(filter(None, (cell.value, cell.interval)))
        bands.append(_Band(name, label, results.of(name, card.key), summary.mean, summary.ci95))
    return _plot(results.names, card, bands)


def _difference_plots(results: Results) -> str:
    """What other models do better or worse than the first, picture by picture."""
    first, *others = [name for name in results.systems if name not in BASELINES] or [None]
    if not others:
        return ""
    figures = []
    for card in results.metrics:
        bands = []
        for name in others:
            found = results.difference(name, first)[card.key]
            a, b = results.of(name, card.key), results.of(first, card.key)
            values = np.subtract(a, b, out=np.zeros_like(a), where=a != b)  # inf - inf is a tie
            bands.append(_Band(name, _difference_cell(results, name, first, card).text, values,
                               found.mean, found.ci95))
        figures.append(_plot(results.names, card, bands, zero=True))
    return (f"<h3>Differences from {escape(first)}, picture by picture</h3>\n"
            '<div class="plots">' + "\n".join(figures) + "</div>")


def _plot(names: Sequence[str], card: Metric, bands: Sequence[_Band], zero: bool = False) -> str:
    """One metric as SVG: a dot a picture, the mean, and its interval; one band a system."""
    width, band, top = 400, 46, 18
    height = top + band * len(bands) + 24
    finite = np.concatenate([b.values[np.isfinite(b.values)] for b in bands] + [[0.0]] * zero)
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    margin = 0.03 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def x(value: float) -> str:
        return f"{10 + (width - 20) * (value - low) / (high - low):.1f}"

    parts = []
    for tick in _ticks(low, high):
        kind = "zero" if zero and tick == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{x(tick)} {top}V{height - 22}"/>'
                     f'<text class="tick" x="{x(tick)}" y="{height - 7}">{tick:g}</text>')
    for row, (name, label, values, mean, ci95) in enumerate(bands):
        y = top + band * row + 30
        room = max(8, 60 - len(label))  # characters of a line
        short = name if len(name) <= room else f"{name[:room - 1]}\u2026"
        parts.append(f'<g class="{"baseline" if name in BASELINES else "model"}">'
                     f'<text x="4" y="{y - 17}">{escape(short)}</text>'
                     f'<text class="mean" x="{width - 4}" y="{y - 17}">{escape(label)}</text>')
        if ci95:
            parts.append(f'<path class="interval" d="M{x(ci95[0])} {y}H{x(ci95[1])}"/>')
        for i, value in enumerate(values):
            if np.isfinite(value):  # the vertical place has no meaning: it keeps dots apart
                parts.append(
                    f'<circle data-i="{i}" cx="{x(value)}" cy="{y - 6 + i * 0.618 % 1 * 12:.1f}" '
                    f'r="2.6"><title>{escape(names[i])}: {value:.{card.digits}f}'
                    "</title></circle>")
        if mean is not None and math.isfinite(mean):
            parts.append(f'<path class="centre" d="M{x(mean)} {y - 9}v18"/>')
        parts.append("</g>")
    corrected = ' class="corrected"' if card.gt_mean else ""
    what = "differences" if zero else "values"
    return (f"<figure{corrected}><figcaption>{_html_heading(card)}</figcaption>"
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(card.heading)}: '
            f'{what} by picture">{"".join(parts)}</svg></figure>')


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the two, at most 6."""
    step = 10 ** math.floor(math.log10(high - low))
    step = next(step * k for k in (0.2, 0.5, 1, 2) if (high - low) / (step * k) <= 6)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _html_pictures(results: Results, pictures: Pictures) -> str:
    """The table of every score: a row a picture, columns by metric and, within it, system."""
    cards, systems = results.metrics, results.systems
    groups = "".join(f'<th scope="colgroup" colspan="{len(systems)}" data-m="{m}">'
                     f"{_html_heading(card)}</th>" for m, card in enumerate(cards))
    columns = "".join(f'<th scope="col" data-m="{m}"><button type="button">{escape(name)}</button>'
                      "</th>" for m in range(len(cards)) for name in systems)
    rows = []
    for i, name in enumerate(results.names):
        cells = "".join(f'<td data-v="{_number(results.values[s, i, m])}">'
                        f"{results.values[s, i, m]:.{card.digits}f}</td>"
                        for m, card in enumerate(cards) for s in range(len(systems)))
        rows.append(
            f'<tr data-i="{i}"><th scope="row"><a href="#picture-{i}">'
            f'<img src="{pictures.thumbnail(systems[0], i)}" loading="lazy" alt="" width="64" '
            f'height="48">{escape(name)}</a></th>{cells}</tr>')
    return ('<thead><tr><th scope="col" rowspan="2"><button type="button">picture</button></th>'
            f"{groups}</tr>\n<tr>{columns}</tr></thead>\n<tbody>" + "\n".join(rows) + "</tbody>")


def _number(value: float) -> str:
    """A number as JavaScript and Python read it."""
    return repr(float(value)) if math.isfinite(value) else "Infinity"


def _html_info(results: Results) -> str:
    def shown(value: object) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key}: ({shown(inner)})" if isinstance(inner, dict) else
                             f"{key}: {inner}" for key, inner in value.items())
        return str(value)

    return "\n".join(f"<dt>{escape(key)}</dt><dd>{escape(shown(value))}</dd>"
                     for key, value in results.info.items())


def _data(results: Results, pictures: Pictures) -> str:
    """What the page's script needs and no table of it has."""
    count = range(len(results.names))
    data = {
        "names": results.names, "systems": results.systems, "sizes": pictures.sizes,
        "metrics": [{"title": card.title, "unit": card.unit, "better": card.better,
                     "digits": card.digits} for card in results.metrics],
        "labels": pictures.labels, "models": sum(n not in BASELINES for n in results.systems),
        "thumbnails": [[pictures.thumbnail(label, i) for i in count] for label in pictures.labels],
        "full": [[pictures.full(label, i) for i in count] for label in pictures.labels]}
    return json.dumps(data).replace("<", "\\u003c")  # a name may not end the script element
