"""What `lljax ablate` writes: one table in every format, plots, and a page that opens offline."""

from __future__ import annotations

import base64
import collections
import csv
import dataclasses
import functools
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lljax import images
from lljax.evaluation import evaluate, report

SETTLED = 5  # seeds from which on their spread is more than a hint


@dataclasses.dataclass(frozen=True)
class Row:
    """A variant's scores.

    Attributes:
      name: of the variant.
      config: its config, flat.
      entries: what it changes.
      scores: seed -> {"metrics", "names", "values" [picture, metric], "losses", ...}.
    """

    name: str
    config: Mapping[str, Any]
    entries: Sequence[str]
    scores: Mapping[int, Mapping[str, Any]]

    def values(self, metric: int, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Values [seed, picture] of the metric of that place."""
        chosen = self.scores if seeds is None else seeds
        return np.stack([self.scores[seed]["values"][:, metric] for seed in chosen])


class Cell(NamedTuple):
    """A metric of a variant, or its difference from the baseline's.

    Attributes:
      mean: over seeds and pictures; None where there is nothing to take the difference of.
      sd: of the seeds' means (n - 1); None below two seeds.
      ci95: 95 % interval of `mean`, see `interval`.
      seeds: how many.
    """

    mean: float | None
    sd: float | None
    ci95: tuple[float, float] | None
    seeds: int


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Everything that the tables say.

    Attributes:
      rows: the variants with a finished run; the first is the baseline, if it has one.
      absent: runs and metrics that are not in the table -> why.
      command: what made it.
      untrained: methods that need no training, by name: values [picture, metric].
      baseline: name of the variant that all others are compared with.
    """

    rows: Sequence[Row]
    absent: Mapping[str, str]
    command: str
    untrained: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    baseline: str = "baseline"

    @property
    def metrics(self) -> Sequence[Mapping[str, Any]]:
        """The metrics' cards: key, heading, better, digits, gt_mean, protocol."""
        return self._first["metrics"]

    @property
    def names(self) -> Sequence[str]:
        """The pictures' names."""
        return self._first["names"]

    @property
    def _first(self) -> Mapping[str, Any]:
        return next(iter(self.rows[0].scores.values()))

    @property
    def others(self) -> Sequence[Row]:
        """The variants that are compared with the baseline; none without one."""
        return self.rows[1:] if self.rows[0].name == self.baseline else []

    @functools.cached_property
    def scores(self) -> dict[str, list[Cell]]:
        """A cell a metric, by variant."""
        return {row.name: [_cell(row.values(m)) for m in range(len(self.metrics))]
                for row in self.rows}

    @functools.cached_property
    def untrained_scores(self) -> dict[str, list[Cell]]:
        """A cell a metric, by method without training."""
        return {name: [_cell(values[None, :, m], 0) for m in range(len(self.metrics))]
                for name, values in self.untrained.items()}

    @functools.cached_property
    def untrained_differences(self) -> dict[str, list[Cell]]:
        """The same minus the baseline, picture by picture with each of its seeds."""
        if self.rows[0].name != self.baseline:
            return {}
        return {name: [_cell(values[:, m] - self.rows[0].values(m))
                       for m in range(len(self.metrics))]
                for name, values in self.untrained.items()}

    @functools.cached_property
    def differences(self) -> dict[str, list[Cell]]:
        """The same of each other variant minus the baseline, paired by seed and picture."""
        found = {}
        for row in self.others:
            seeds = [seed for seed in row.scores if seed in self.rows[0].scores]
            found[row.name] = [
                _cell(row.values(m, seeds) - self.rows[0].values(m, seeds)) if seeds
                else Cell(None, None, None, 0) for m in range(len(self.metrics))]
        return found


def _cell(values: np.ndarray, seeds: int | None = None) -> Cell:
    """The cell of values [seed, picture]; infinite ones (equal pictures) leave no spread. `seeds`
    is how many it says it is of, if not as many as there are."""
    seeds = len(values) if seeds is None else seeds
    with np.errstate(invalid="ignore"):
        mean = float(values.mean())
    if not np.isfinite(values).all():
        return Cell(None if math.isnan(mean) else mean, None, None, seeds)
    sd = float(values.mean(1).std(ddof=1)) if len(values) > 1 else None
    return Cell(mean, sd, interval(values), seeds)


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % percentile-bootstrap interval of the mean over seeds and pictures.

    Seeds and pictures are drawn with replacement, independently of each other; a draw's mean is
    over its seeds x its pictures. With one seed it is over pictures alone and says nothing of
    another training; with few seeds it is too narrow, for their spread is known no better (two
    seeds show half of its variance on average, three two thirds).

    Args:
      values: finite, [seed, picture].

    Returns:
      (low, high), None below two pictures.
    """
    seeds, pictures = values.shape
    if pictures < 2:
        return None
    rng = np.random.default_rng(evaluate.BOOTSTRAP_SEED)
    draws = evaluate.RESAMPLES
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    by_picture = rng.multinomial(pictures, np.full(pictures, 1 / pictures), draws) / pictures
    means = ((by_seed @ values) * by_picture).sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


# Tables.


def _shown(cell: Cell, digits: int, sign: bool = False) -> str:
    """"17.97 ± 0.12 [17.5, 18.4]"."""
    if cell.mean is None:
        return "none"
    text = f"{cell.mean:{'+' if sign else ''}.{digits}f}"
    if cell.sd is not None:
        text += f" ± {cell.sd:.{digits}f}"
    if cell.ci95 is not None:
        text += " [{:.{d}f}, {:.{d}f}]".format(*cell.ci95, d=digits)
    return text


def _marked(name: str) -> str:
    """What the tables call a method without training: no variant, and not the baseline."""
    return f"{name} (untrained)"


class _Table(NamedTuple):
    title: str
    head: list[str]
    rows: list[list[str]]


def _tables(ablation: Ablation) -> list[_Table]:
    """Scores, differences from the baseline, then the same two with gt-mean. Methods without
    training are the last rows, marked as such."""
    tables = []
    for gt_mean, end in ((False, ""), (True, ", after scaling each output to its reference's mean "
                                             "grey (never compare with the others)")):
        places = [m for m, card in enumerate(ablation.metrics) if card["gt_mean"] == gt_mean]
        if not places:
            continue
        for title, cells, others, sign in (
                ("Scores", ablation.scores, ablation.untrained_scores, False),
                ("Minus the baseline", ablation.differences, ablation.untrained_differences, True)):
            cells = {**cells, **{_marked(name): row for name, row in others.items()}}
            if cells:
                head = ["variant", "seeds", *(ablation.metrics[m]["heading"] for m in places)]
                rows = [[name, str(row[0].seeds or "none"), *(
                    _shown(row[m], ablation.metrics[m]["digits"], sign) for m in places)]
                    for name, row in cells.items()]
                tables.append(_Table(title + end, head, rows))
    return tables


def _notes(ablation: Ablation) -> list[str]:
    """What a reader of the tables has to know, a sentence each."""
    seeds = max(cell[0].seeds for cell in ablation.scores.values())
    notes = [f"Mean over seeds and {len(ablation.names)} pictures"
             + (" ± standard deviation of the seeds' means" if seeds > 1 else "")
             + (" [95 % bootstrap interval]." if len(ablation.names) > 1 else ".")]
    if seeds == 1:
        notes.append("One seed: the intervals are over pictures alone and say nothing of another "
                     "training.")
    else:
        notes.append("Intervals: seeds and pictures are drawn with replacement, independently.")
        if seeds < SETTLED:
            notes.append(f"With {seeds} seeds the intervals are too narrow: their spread is known "
                         "no better.")
    if 1 < len(ablation.names) < evaluate.SETTLED:
        notes.append(f"With {len(ablation.names)} pictures the intervals are too narrow.")
    if ablation.untrained:
        notes.append("Rows marked (untrained) are methods that need no training, so no seeds; the "
                     "baseline is the config as given. Their differences are picture by picture "
                     "from each of the baseline's seeds." if ablation.untrained_differences else
                     "Rows marked (untrained) are methods that need no training, so no seeds.")
    if ablation.differences:
        notes.append("Differences are paired by seed and picture, and their intervals are not "
                     "corrected for the number of comparisons.")
    elif ablation.rows[0].name != ablation.baseline:
        notes.append("The baseline has no finished run, so there are no differences.")
    notes += [f"Not in the table: {name}: {why}." for name, why in ablation.absent.items()]
    return notes


def text(ablation: Ablation) -> str:
    """The tables as fixed-width text."""
    lines = []
    for table in _tables(ablation):
        rows = [table.head, *table.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += [f"{table.title}:", *("  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows), ""]
    return "\n".join([*lines, *_notes(ablation)])


def markdown(ablation: Ablation) -> str:
    """The tables as Markdown."""
    def line(cells):
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;")
                                 for cell in cells) + " |"

    blocks = ["\n".join([f"{table.title}:", "", line(table.head), "|---" * len(table.head) + "|",
                         *map(line, table.rows)]) for table in _tables(ablation)]
    protocols = ", ".join(f"`{card['protocol']}`" for card in ablation.metrics)
    return "\n\n".join([*blocks, " ".join(_notes(ablation)), f"Protocols: {protocols}.",
                        f"Made by `{ablation.command}`."]) + "\n"


def latex(ablation: Ablation) -> str:
    """The tables as LaTeX (booktabs)."""
    def line(cells):
        return " & ".join(report.escape_latex(cell).replace("±", r"$\pm$") for cell in cells) + (
            r" \\")

    notes = report.escape_latex(" ".join(_notes(ablation))).replace("±", r"$\pm$")
    blocks = [r"% \usepackage{booktabs}"]
    for table in _tables(ablation):
        blocks.append("\n".join([
            r"\begin{table}", r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}", r"\toprule", line(table.head),
            r"\midrule", *map(line, table.rows), r"\bottomrule", r"\end{tabular}",
            rf"\caption{{{report.escape_latex(table.title)}. {notes}}}", r"\end{table}"]))
    return "\n\n".join(blocks) + "\n"


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def table_csv(ablation: Ablation) -> str:
    """A row a variant: what it changes, mean, sd, interval and difference of each metric; then
    the methods without training, of 0 seeds."""
    names = [f"{kind}{name}" for kind in ("", "minus_baseline_")
             for name in ("mean", "sd", "low", "high")]
    rows = [["variant", "changes", "seeds", *(
        f"{card['key']}_{name}" for card in ablation.metrics for name in names)]]
    blank = [Cell(None, None, None, 0)] * len(ablation.metrics)

    def add(start: Sequence[Any], scores: Sequence[Cell], less: Sequence[Cell]) -> None:
        numbers = [value for pair in zip(scores, less, strict=True) for cell in pair
                   for value in (cell.mean, cell.sd, *(cell.ci95 or (None, None)))]
        rows.append([*start, *("" if value is None else repr(value) for value in numbers)])

    for row in ablation.rows:
        add([row.name, " ".join(row.entries), len(row.scores)], ablation.scores[row.name],
            ablation.differences.get(row.name, blank))
    for name, cells in ablation.untrained_scores.items():
        add([_marked(name), "", 0], cells, ablation.untrained_differences.get(name, blank))
    return _csv(rows)


def runs_csv(ablation: Ablation) -> str:
    """A row a run: means over pictures, and the raw loss terms at the end of the training."""
    terms = sorted({term for row in ablation.rows for found in row.scores.values()
                    for term in found["losses"]})
    rows = [["variant", "seed", *(card["key"] for card in ablation.metrics), *terms]]
    for row in ablation.rows:
        for seed, found in row.scores.items():
            means = [repr(float(value)) for value in found["values"].mean(0)]
            rows.append([row.name, seed, *means,
                         *(found["losses"].get(term, "") for term in terms)])
    return _csv(rows)


def per_image_csv(ablation: Ablation) -> str:
    """A row a picture of a run, then of a method without training, which has no seed."""
    rows = [["variant", "seed", "name", *(card["key"] for card in ablation.metrics)]]
    rows += [[row.name, seed, name, *(repr(float(value)) for value in values)]
             for row in ablation.rows for seed, found in row.scores.items()
             for name, values in zip(found["names"], found["values"], strict=True)]
    rows += [[_marked(method), "", name, *(repr(float(value)) for value in values)]
             for method, found in ablation.untrained.items()
             for name, values in zip(ablation.names, found, strict=True)]
    return _csv(rows)


def to_json(ablation: Ablation) -> str:
    """All cells, as numbers; an infinite mean is the string "inf"."""
    def cells(row):
        found = {}
        for card, cell in zip(ablation.metrics, row, strict=True):
            fields = cell._asdict()
            if cell.mean is not None and math.isinf(cell.mean):
                fields["mean"] = repr(cell.mean)
            found[card["key"]] = fields
        return found

    variants = {row.name: {
        "changes": row.entries, "seeds": list(row.scores),
        "scores": cells(ablation.scores[row.name]),
        "minus_baseline": (cells(ablation.differences[row.name])
                           if row.name in ablation.differences else None)}
        for row in ablation.rows}
    untrained = {name: {
        "scores": cells(row), "minus_baseline": (cells(ablation.untrained_differences[name])
                                                 if ablation.untrained_differences else None)}
        for name, row in ablation.untrained_scores.items()}
    return json.dumps({
        "command": ablation.command, "baseline": ablation.baseline, "pictures": ablation.names,
        "metrics": ablation.metrics, "variants": variants, "untrained": untrained,
        "absent": ablation.absent,
        "notes": _notes(ablation), "versions": ablation._first["versions"],
        "bootstrap": {"resamples": evaluate.RESAMPLES, "seed": evaluate.BOOTSTRAP_SEED}},
        indent=1, allow_nan=False) + "\n"


# Plots: SVG, so that they open anywhere and need no library.

_WIDTH, _LEFT, _RIGHT = 720, 220, 30
_COLOURS = ("#3366aa", "#cc6633", "#339966", "#993366", "#777777", "#aa9922")


def _svg(height: int, parts: Sequence[str], title: str) -> str:
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="13" '
            f'role="img"><title>{html.escape(title)}</title>'
            f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n')


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>')


def _line(x1: float, y1: float, x2: float, y2: float, style: str = 'stroke="#333"') -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from low to high."""
    raw = (high - low) / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def difference_plot(ablation: Ablation, metric: int) -> str | None:
    """Each variant's difference from the baseline with its interval; None without any."""
    cells = [(name, row[metric]) for name, row in ablation.differences.items()
             if row[metric].mean is not None and math.isfinite(row[metric].mean)]
    if not cells:
        return None
    card = ablation.metrics[metric]
    low, high = _range([0.0, *(x for _, cell in cells for x in (cell.mean, *(cell.ci95 or ())))])

    def x(value):
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    step, top = 24, 40
    bottom = top + step * len(cells)
    title = f"{card['heading']}: variant minus baseline"
    parts = [_text(_LEFT, 20, title), _line(x(0), top - 8, x(0), bottom, 'stroke="#999"')]
    for tick in _ticks(low, high):
        parts += [_line(x(tick), bottom, x(tick), bottom + 5),
                  _text(x(tick), bottom + 20, f"{tick:g}", "middle")]
    for number, (name, cell) in enumerate(cells):
        y = top + step * (number + 0.5)
        if cell.ci95:
            parts.append(_line(x(cell.ci95[0]), y, x(cell.ci95[1]), y,
                               f'stroke="{_COLOURS[0]}" stroke-width="3"'))
        parts.append(f'<circle cx="{x(cell.mean):.1f}" cy="{y:.1f}" r="5" fill="{_COLOURS[0]}"/>')
        parts.append(_text(_LEFT - 12, y + 4, name if len(name) < 32 else name[:31] + "…", "end"))
    return _svg(bottom + 30, parts, title)


def varied(ablation: Ablation) -> list[str]:
    """The settings that were given several numbers (leaving out gives each just one)."""
    entries = {entry for row in ablation.rows for entry in row.entries if "=" in entry}
    keys = collections.Counter(entry.partition("=")[0] for entry in sorted(entries))
    return [key for key, count in keys.items() if count > 1 and all(
        isinstance(row.config.get(key), int | float)
        and not isinstance(row.config.get(key), bool) for row in ablation.rows)]


def value_plot(ablation: Ablation, metric: int, key: str) -> str | None:
    """The metric against the values of one setting, a line for every value of the others."""
    others = [other for other in varied(ablation) if other != key]
    lines: dict[tuple, list[tuple[float, Cell]]] = {}
    for row in ablation.rows:
        cell = ablation.scores[row.name][metric]
        if cell.mean is not None and math.isfinite(cell.mean) and key in row.config:
            lines.setdefault(tuple(row.config.get(other) for other in others), []).append(
                (float(row.config[key]), cell))
    lines = {rest: sorted(points) for rest, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    card = ablation.metrics[metric]
    points = [point for line in lines.values() for point in line]
    values = sorted({value for value, _ in points})
    low, high = _range([y for _, cell in points for y in (cell.mean, *(cell.ci95 or ()))])
    top, bottom, left = 40, 300, 80
    legend = [", ".join(f"{other}={value:g}" for other, value in zip(others, rest, strict=True)
                        if isinstance(value, int | float)) for rest in lines]

    def x(value):  # at equal distances: weights of 0, 20 and 2000 would lie on each other
        return left + 40 + values.index(value) * (_WIDTH - left - 80) / (len(values) - 1)

    def y(value):
        return bottom - (value - low) / (high - low) * (bottom - top)

    title = f"{card['heading']} against {key}"
    parts = [_text(left, 20, title), _line(left, bottom, _WIDTH - _RIGHT, bottom),
             _line(left, top, left, bottom)]
    parts += [_text(x(value), bottom + 20, f"{value:g}", "middle") for value in values]
    for tick in _ticks(low, high):
        parts += [_line(left - 5, y(tick), left, y(tick)),
                  _text(left - 8, y(tick) + 4, f"{tick:g}", "end")]
    for number, line in enumerate(lines.values()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x(value):.1f},{y(cell.mean):.1f}" for value, cell in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        for value, cell in line:
            at = x(value) + 4 * (number - len(lines) / 2)
            if cell.ci95:
                parts.append(_line(at, y(cell.ci95[0]), at, y(cell.ci95[1]),
                                   f'stroke="{colour}" stroke-opacity="0.5"'))
            parts.append(f'<circle cx="{x(value):.1f}" cy="{y(cell.mean):.1f}" r="4" '
                         f'fill="{colour}"/>')
        if legend[number]:
            parts += [_line(left, bottom + 40 + 18 * number, left + 20, bottom + 40 + 18 * number,
                            f'stroke="{colour}" stroke-width="3"'),
                      _text(left + 28, bottom + 44 + 18 * number, legend[number])]
    height = bottom + 36 + (18 * len(lines) if any(legend) else 0)
    return _svg(height, parts, title)


def plots(ablation: Ablation) -> dict[str, str]:
    """File name -> SVG."""
    found = {}
    for metric, card in enumerate(ablation.metrics):
        found[f"{card['key']}_minus_baseline"] = difference_plot(ablation, metric)
        for key in varied(ablation):
            found[f"{card['key']}_against_{key}"] = value_plot(ablation, metric, key)
    return {name: svg for name, svg in found.items() if svg}


def page(ablation: Ablation, drawn: Mapping[str, str], png: bytes) -> str:
    """One HTML file with everything in it."""
    def cells(tag, row):
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)

    tables = "".join(
        f"<h2>{html.escape(table.title)}</h2><div><table><tr>{cells('th', table.head)}</tr>"
        + "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows) + "</table></div>"
        for table in _tables(ablation))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _notes(ablation))
    picture = base64.b64encode(png).decode()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Ablation</title>'
        '<meta name="viewport" content="width=device-width"><style>'
        "body{font:15px sans-serif;margin:2em auto;max-width:1400px;padding:0 1em}"
        "td,th{padding:.3em .8em;text-align:left;border-bottom:1px solid #ddd;white-space:nowrap}"
        "table{border-collapse:collapse}div{overflow-x:auto}svg,img{max-width:100%;height:auto}"
        f"</style></head><body><h1>Ablation</h1><p><code>{html.escape(ablation.command)}</code>"
        f"</p>{tables}<ul>{notes}</ul><h2>Pictures of the first seed</h2>"
        f'<img alt="the same scenes, a column a variant" src="data:image/png;base64,{picture}">'
        f"<h2>Plots</h2>{''.join(drawn.values())}</body></html>\n")


def write(ablation: Ablation, root: str, sheet: np.ndarray) -> None:
    """Writes everything into `root`, each file whole or not at all.

    Args:
      ablation: what the tables say.
      root: folder.
      sheet: picture grid, uint8 [H, W, 3].

    Raises:
      InputError: the folder cannot be written to.
    """
    drawn = plots(ablation)
    png = images.encode(images.Picture(sheet), "PNG")
    files = {
        "ablation.md": markdown(ablation), "ablation.csv": table_csv(ablation),
        "ablation.json": to_json(ablation), "ablation.tex": latex(ablation),
        "ablation.html": page(ablation, drawn, png), "runs.csv": runs_csv(ablation),
        "per_image.csv": per_image_csv(ablation),
        **{os.path.join("plots", f"{name}.svg"): svg for name, svg in drawn.items()}}
    with report.writing(root):
        os.makedirs(os.path.join(root, "plots"), exist_ok=True)
        for name, content in {**files, "pictures.png": png}.items():
            with images.atomic(os.path.join(root, name)) as file:
                file.write(content if isinstance(content, bytes) else
                           content.encode("utf-8", "backslashreplace"))  # file names in it
