"""The report: what the page says and refers to, tables for papers, paired differences."""

import csv
import dataclasses
import html.parser
import json
import math
import os
import re
import time

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from lljax.errors import InputError
from lljax.evaluation import report
from lljax.evaluation.baselines import BASELINES
from lljax.evaluation.evaluate import (
    Results,
    difference,
    evaluate,
    interval,
    main,
    signed_rank,
    to_json,
)
from lljax.evaluation.metrics import METRICS
from tests.test_evaluate import brighten, make_pairs, write_pairs

HOSTILE = ["<b>&\"'.png", "</script><script>alert(1)</script>.png", "{{data}}.png", "a/b.png",
           "a_b.png", "A_B.png", "..", "caf\u00e9 \u65e5\u672c.png", "\udcff.png"]
SYSTEM = "<i>&\"'|_$%#{}~^\\"


def dim(picture):
    return brighten(picture) // 2


def hostile_pairs():
    pairs = make_pairs(len(HOSTILE))
    for pair, name in zip(pairs, HOSTILE, strict=True):
        pair["name"] = name
    return pairs


class Page(html.parser.HTMLParser):
    """What a browser without JavaScript would know of the page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.ids, self.cells, self.scripts = [], [], [], [], []
        self.text, self.open = "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.addresses += [attrs[key] for key in ("src", "href") if key in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if "data-v" in attrs:
            self.cells.append(float(attrs["data-v"]))
        if tag == "script":
            self.scripts.append("")
        if tag not in ("meta", "link", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.text += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report on pictures with hostile names by a system with one, its folder and results."""
    folder = tmp_path_factory.mktemp("report") / "new" / "out"
    results = evaluate({SYSTEM: brighten, "dim": dim}, hostile_pairs(), out=str(folder),
                       with_report=True, info={"source": "<u>made up</u>", "command": "a && b"})
    return folder, results, (folder / "report.html").read_text("utf-8")


def test_every_reference_is_a_file_beside_the_page(written):
    folder, results, text = written
    page = Page(text)
    assert page.open == []
    files = [a for a in page.addresses if a and a[0] != "#" and a != "data:,"]
    files += [path for kind in ("thumbnails", "full") for row in page.data[kind] for path in row]
    labels = ["low", *results.systems, "reference"]
    assert page.data["labels"] == labels
    assert len(page.data["full"]) == len(labels) and {len(r) for r in page.data["full"]} == {9}
    for path in files:
        assert re.fullmatch(r"[A-Za-z0-9._/-]+", path) and ".." not in path, path
        assert (folder / path).is_file(), path
    kept = {str(p.relative_to(folder)) for p in (folder / "pictures").rglob("*") if p.is_file()}
    assert kept == {path for path in files if path.startswith("pictures/")}
    # "identity" is "low"; every other picture has files of its own, whatever it is called
    assert len(kept) == 2 * len(results.names) * (len(labels) - 1)
    assert len({path.lower() for path in kept}) == len(kept)


def test_nothing_is_fetched_from_elsewhere(written):
    page = Page(written[2])
    assert not [a for a in page.addresses if "//" in a or a.startswith("/")]
    assert not {"iframe", "object", "embed", "base", "form"} & set(page.tags)
    style = re.search(r"<style>(.*?)</style>", written[2], re.S)[1]
    assert "url(" not in style and "@import" not in style
    assert len(page.scripts) == 2 and page.tags.count("script") == 2
    for word in ("http", "fetch", "XMLHttp", "import", "WebSocket", "innerHTML", "eval"):
        assert word not in page.scripts[1], word


def test_hostile_names_are_text(written):
    _, results, text = written
    page = Page(text)
    assert not {"b.png", "i", "u"} & set(page.tags) and "b" not in page.tags
    shown = [name.replace("\udcff", "\\udcff") for name in HOSTILE]
    for name in [*shown, SYSTEM, "dim", "<u>made up</u>", "a && b"]:
        assert name in page.text, name
    assert page.data["names"] == HOSTILE == results.names
    assert page.data["systems"] == results.systems == [
        SYSTEM, "dim", *BASELINES]


def test_the_numbers_are_those_of_the_files(written):
    folder, results, text = written
    page = Page(text)
    saved = json.loads((folder / "results.json").read_text())
    for name, scores in saved["systems"].items():
        assert name in results.systems
        for key, score in scores.items():
            digits = METRICS[key].digits
            mean, sd, low, high = (f"{value:.{digits}f}" for value in (
                score["mean"], score["sd"], *score["ci95"]))
            assert f"{mean} [{low}, {high}]" in page.text  # plot
            assert f"{mean} \u00b1 {sd} [{low}, {high}]" in page.text  # table
    rows = list(csv.DictReader((folder / "per_image.csv").open(newline="")))
    n, keys = len(results.names), list(METRICS)
    expected = [float(rows[s * n + i][key]) for i in range(n) for key in keys
                for s in range(len(results.systems))]
    assert page.cells == expected
    assert saved["paired"]["against"] == SYSTEM
    assert list(saved["paired"]["systems"]) == results.systems[1:]
    for name, scores in saved["paired"]["systems"].items():
        for key, entry in scores.items():
            values = results.of(name, key) - results.of(SYSTEM, key)
            assert entry["mean"] == pytest.approx(values.mean(), abs=1e-12)
            assert f"{entry['mean']:+.{METRICS[key].digits}f}" in page.text
            up = values > 0 if METRICS[key].better == "up" else values < 0
            assert entry["wins"] == up.sum() and entry["n"] == n
            assert entry["wins"] + entry["losses"] + entry["ties"] == n


def test_pictures_are_what_was_scored(written):
    folder, results, text = written
    data = Page(text).data
    pairs = hostile_pairs()
    for i, pair in enumerate(pairs):
        path = folder / data["full"][data["labels"].index(SYSTEM)][i]
        np.testing.assert_array_equal(np.asarray(Image.open(path)), brighten(pair["low"]))
        for label, k in ((pair["low"], 0), (pair["high"], -1)):
            shown = np.asarray(Image.open(folder / data["full"][k][i])).astype(float)
            assert np.abs(shown - label).mean() < 6  # a JPEG of noise
        assert data["sizes"][i] == [30, 24]


def test_thumbnails_are_bounded_and_cover_any_shape(tmp_path):
    pairs = make_pairs(1, (900, 700)) + make_pairs(1, (12, 1400)) + make_pairs(1, (11, 11))
    names = [f"{i}.png" for i in range(3)]
    with report.Pictures(str(tmp_path), names, ["s"]) as pictures:
        for i, pair in enumerate(pairs):
            for label in pictures.labels:
                pictures.add(label, i, pair["low"])
        pictures.place()
    sizes = []
    for i in range(3):
        with Image.open(tmp_path / pictures.thumbnail("s", i)) as small:
            sizes.append(small.size)
        with Image.open(tmp_path / pictures.full("s", i)) as full:
            assert full.format == "PNG" and full.size == pictures.sizes[i]
    assert sizes == [(249, 320), (320, 3), (11, 11)]


def test_the_page_of_a_hundred_pictures_is_light(tmp_path):
    names = [f"{i:03d}.png" for i in range(100)]
    values = np.random.default_rng(0).normal(20, 3, (5, 100, 6))
    results = Results(["a", "b", "identity", "gamma 0.4", "gamma 0.5"], list(METRICS.values()),
                      names, values)
    report.write_report(results, report.Pictures("unused", names, results.systems), str(tmp_path))
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    text = (tmp_path / "report.html").read_text()
    assert text.count("<img src=") == text.count('loading="lazy" alt=""') == 100


def test_nothing_is_enhanced_twice_and_reports_repeat(tmp_path):
    calls = []

    def counted(picture):
        calls.append(picture)
        return brighten(picture)

    for name in ("one", "two"):
        evaluate({"x4": counted}, make_pairs(4), out=str(tmp_path / name), with_report=True)
    assert len(calls) == 2 * 4
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*") if p.is_file())
             for n in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) == 6 + 4 * 2 * (2 + len(BASELINES))
    for path in files[0]:
        one, two = ((tmp_path / name / path).read_bytes() for name in ("one", "two"))
        if path.suffix in (".html", ".json"):  # the only thing that may differ
            one, two = (re.sub(rb"\d{4}-\d\d-\d\dT[\d:]+\+00:00", b"", t) for t in (one, two))
        assert one == two, path


def test_a_failing_system_is_one_line_and_leaves_nothing(tmp_path):
    def broken(picture):
        if (picture == make_pairs(3)[2]["low"]).all():
            raise InputError("no idea")
        return picture

    for folder in (tmp_path / "new", tmp_path / "there"):
        if folder.name == "there":
            folder.mkdir()
        with pytest.raises(InputError) as caught:
            evaluate({"x4": brighten, "broken": broken}, make_pairs(3), out=str(folder),
                     with_report=True)
        assert str(caught.value) == "broken on 002.png: no idea"
    assert not (tmp_path / "new").exists() and not list((tmp_path / "there").iterdir())


def test_a_report_replaces_a_report_and_nothing_else(tmp_path):
    mine = tmp_path / "pictures" / "holiday.jpg"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    (tmp_path / "report.html").write_text("<h1>mine too</h1>")
    with pytest.raises(InputError, match="not of a report"):
        evaluate({"x4": brighten}, make_pairs(2), out=str(tmp_path), with_report=True)
    assert mine.read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 2
    evaluate({"x4": brighten}, make_pairs(2), out=str(tmp_path / "r"), with_report=True)
    evaluate({"x5": brighten}, make_pairs(1), out=str(tmp_path / "r"), with_report=True)
    assert sorted(p.name for p in (tmp_path / "r" / "pictures").iterdir()) == [
        "CLAHE", "HE", "LIME-style", "gamma_0.4", "gamma_0.5", "low", "reference",
        "thumbnails", "x5"]
    assert [p.name for p in (tmp_path / "r" / "pictures" / "x5").iterdir()] == ["000.png"]
    assert not [p.name for p in (tmp_path / "r").iterdir() if p.name[0] == "."]


def test_infinite_scores_and_a_single_picture(tmp_path):
    pairs = make_pairs(2)
    pairs[1]["low"] = pairs[1]["high"].copy()
    evaluate({"x4": brighten}, pairs, out=str(tmp_path / "inf"), with_report=True)
    text = (tmp_path / "inf" / "report.html").read_text()
    assert "inf (1 of 2)" in text and "nan" not in Page(text).text.lower()
    assert math.inf in Page(text).cells and "k outputs equal" in text
    saved = json.loads((tmp_path / "inf" / "results.json").read_text())
    entry = saved["paired"]["systems"]["identity"]["psnr"]
    assert entry["mean"] is None and entry["ci95"] is None
    assert entry["wins"] == 1 and entry["losses"] == 1
    evaluate({"x4": brighten}, pairs[1:], out=str(tmp_path / "one"), with_report=True)
    text = (tmp_path / "one" / "report.html").read_text()
    assert "no interval" in text and "nan" not in Page(text).text.lower()
    assert r"\textbf" not in (tmp_path / "one" / "results.tex").read_text()


# Paired differences and what is bold.


def made_up(*columns, metric="psnr"):
    values = np.stack(columns).astype(float)[:, :, None]
    systems = [f"s{i}" for i in range(len(columns))]
    names = [f"{i}.png" for i in range(values.shape[1])]
    return Results(systems, [METRICS[metric]], names, values)


def test_the_paired_interval_equals_a_bootstrap_by_hand():
    rng = np.random.default_rng(8)
    a = rng.normal(15, 4, 41)
    b = a - 0.5 + rng.normal(0, 0.6, 41)  # pictures differ far more than systems do
    found = difference(b, a)
    assert found.mean == pytest.approx(b.mean() - a.mean(), abs=1e-12)
    drawn = np.random.default_rng(99).integers(0, 41, (40_000, 41))  # pictures, with both values
    low, high = np.percentile(b[drawn].mean(1) - a[drawn].mean(1), [2.5, 97.5])
    assert found.ci95 == pytest.approx((low, high), abs=0.03 * (high - low))
    unpaired = interval(a)[1] - interval(a)[0]
    assert found.ci95[1] - found.ci95[0] < 0.3 * unpaired
    assert found.ci95[1] < 0 and found.wins == (b > a).sum() and found.n == 41
    back = difference(a, b)
    assert back.ci95 == pytest.approx((-found.ci95[1], -found.ci95[0]), abs=1e-12)
    assert (back.wins, back.losses) == (found.losses, found.wins)
    assert difference(b, a, up=False).wins == found.losses
    same = difference(a, a)
    assert (same.mean, same.ci95, same.ties, same.p) == (0, (0, 0), 41, None)
    assert difference(a[:1], b[:1]).ci95 is None


def test_p_is_the_signed_rank_tests():
    def p(*differences):
        return signed_rank(np.array(differences, float), np.zeros(len(differences)))

    # by hand: of the 2^n signs, how many have a rank sum as far from the middle
    assert p(1, 2, 3, 4, 5) == 2 / 2**5
    assert p(-1, 2, 3, 4, 5, 6) == 4 / 2**6  # negative rank sum 1: {}, {1} and their opposites
    assert p(1, -2, 3, 4, 5, 6) == 6 / 2**6  # negative rank sum 2: {}, {1}, {2}
    assert p(9, -7, 0, 0, 8) == p(9, -7, 8) == 4 / 2**3  # ties are left out
    assert p(0, 0) is None and p(5) == 1.0
    rng = np.random.default_rng(4)
    a = rng.normal(0, 3, 60)
    b = a - 0.3 + rng.normal(0, 1, 60)
    assert signed_rank(a, b) == pytest.approx(scipy.stats.wilcoxon(a, b).pvalue)
    assert signed_rank(a, b) == pytest.approx(signed_rank(b, a)) and signed_rank(a, b) < 0.05
    # infinite PSNR: only the order counts; two of them tie
    high = np.array([np.inf, 20, 21, 22, 23, 24, 25])
    other = np.array([np.inf, 19, 19, 19, 19, 19, 19])
    assert signed_rank(high, other) == p(1, 2, 3, 4, 5, 6)
    assert signed_rank(high, np.r_[7.0, other[1:]]) == p(1, 2, 3, 4, 5, 6, 7)
    assert difference(high, other).mean is None and difference(high, other).ties == 1


def test_the_tables_say_p_and_for_how_many_comparisons():
    rng = np.random.default_rng(1)
    base = rng.normal(15, 5, 30)
    results = made_up(base, base + 0.5 + rng.normal(0, 0.3, 30), base + rng.normal(0, 1, 30))
    settled, open_ = (results.difference(name, "s0")["psnr"] for name in ("s1", "s2"))
    assert settled.p < 1e-4 < open_.p
    for text in (report.table(results), report.markdown(results).replace("&lt;", "<"),
                 report.latex(results).replace("$<$", "<")):
        assert f"{settled.wins}/{settled.losses} p<0.0001" in text
        assert f"{open_.wins}/{open_.losses} p={open_.p:.2g}" in text
        assert "not corrected for the 2 comparisons" in text
    saved = json.loads(to_json(results))["paired"]["systems"]
    assert saved["s2"]["psnr"]["p"] == open_.p
    assert "p=" not in report.table(made_up(base)) and "comparisons" not in report.latex(
        made_up(base))


def test_wide_tables_are_cut():
    values = np.random.default_rng(0).normal(20, 3, (2, 12, 6))
    cards = [dataclasses.replace(card, gt_mean=False) for card in METRICS.values()][:6]
    names = [f"{i}.png" for i in range(12)]
    results = Results(["one", "two"], cards, names, values)
    text = report.table(results)
    body = text.split("\n")[1:-1]  # the caption and the note are not wrapped
    for line in body:
        assert len(line) <= 100 or line.startswith("  "), line
    for card in cards:
        assert text.count(f" {card.heading}") == 2  # scores and differences
    assert text.count("\none ") >= 2 and text.count("\ntwo ") >= 4
    tex = report.latex(results)
    assert tex.count(r"\begin{tabular}{lrrr}") == 4  # 6 columns of scores, 6 of differences


def test_bold_is_what_the_pairs_show():
    rng = np.random.default_rng(1)
    base = rng.normal(15, 5, 30)
    noise = rng.normal(0, 0.3, 30)
    settled = made_up(base, base + 0.5 + noise, base - 2)
    assert [settled.is_best(name, "psnr") for name in settled.systems] == [False, True, False]
    assert report.latex(settled).count(r"\textbf{") == 1
    assert report.markdown(settled).count("| **") == 1 and "bold:" in report.markdown(settled)
    few = made_up(base[:9], (base + 0.5 + noise)[:9], base[:9] - 2)
    assert few.difference("s1", "s0")["psnr"].ci95[0] > 0 and not few.is_best("s1", "psnr")
    # the same means, but which is better changes from picture to picture
    open_ = made_up(base, base + 0.1 + 5 * (noise - noise.mean()))
    assert not any(open_.is_best(name, "psnr") for name in open_.systems)
    assert r"\textbf" not in report.latex(open_) and "bold" not in report.markdown(open_)
    down = made_up(base, base + 0.5 + noise, base - 2, metric="mae")
    assert [down.is_best(name, "mae") for name in down.systems] == [False, False, True]
    assert not made_up(base).is_best("s0", "psnr")  # better than nothing is no result


def test_latex_is_escaped_and_whole(written):
    _, results, _ = written
    text = report.latex(results)
    assert report.escape_latex("a_b & 50% #1 {x} ~^ $5 \\n <|>\n\"q\"") == (
        r"a\_b \& 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{} \$5 \textbackslash{}n "
        r"\textless{}\textbar{}\textgreater{} ''q''")
    assert report.escape_latex(SYSTEM) in text and SYSTEM not in text
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 4
    bare = re.sub(r"\\[&%$#_{}]", "", text)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert "#" not in bare and "~" not in bare
    body = re.findall(r"^.* \\\\$", text, re.M)
    rows = len(results.systems)
    assert len(body) == 4 + 2 * rows + 2 * (rows - 1)
    assert {re.sub(r"\\[&%$#_{}]", "", line).count("&") for line in body} == {3}
    assert [line for line in text.split("\n") if line.startswith("%")] == [
        r"% \usepackage{booktabs}"]
    for rule in (r"\toprule", r"\bottomrule"):
        assert text.count(rule) == 4
    assert "$-$" in text and not re.search(r"[ \[{]-\d", text)


def test_several_models_are_rows_of_one_table(written):
    _, results, _ = written
    paired = json.loads(to_json(results))["paired"]
    assert set(paired["systems"]) == {"dim", *BASELINES}
    text = report.table(results)
    lines = [line for line in text.split("\n") if line.startswith("dim ")]
    assert len(lines) >= 4 and "\n".join(lines).count("/") == len(results.metrics)


def test_the_command_writes_a_report(tmp_path, monkeypatch, capsys):
    from lljax.inference import enhancer
    monkeypatch.chdir(tmp_path)
    calls = []

    def load(path, seed, settings, averaged, step):
        def system(picture):
            calls.append(path)
            return brighten(picture) if path == "a" else dim(picture)
        return system

    monkeypatch.setattr(enhancer, "load", load)
    flags = write_pairs(tmp_path / "eval15")
    assert main(["evaluate.py", "--weights", "a", "--weights", "b", *flags, "--report", "out"]) == 0
    assert sorted(os.listdir("out")) == [
        "contact_sheet.png", "per_image.csv", "pictures", "report.html", "results.json",
        "results.md", "results.tex"]
    assert sorted(calls) == ["a"] * 3 + ["b"] * 3
    shown = capsys.readouterr().out
    assert "each row minus a" in shown and "report.html" in shown and shown.endswith("to out\n")
    # the sheet shows the two models, not the baselines: low, a, b, reference
    with Image.open("out/contact_sheet.png") as sheet:
        assert sheet.width == 4 * (320 + 6) + 6
    assert sorted(p for p in os.listdir() if p[0] == ".") == []


# In a browser.


COLUMN = """return [...document.querySelectorAll("#scores tbody tr")].map((row) =>
  Number([...row.cells].filter((c) => !c.hidden)[%d].dataset.v));"""


def choose(browser, name, index):
    browser.run(f"const e = document.getElementById('{name}'); e.value = {index}; "
                "e.dispatchEvent(new Event('change'));")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_in_a_browser(written, browser, width):
    folder, results, text = written
    data = Page(text).data
    browser.tool("Emulation.setDeviceMetricsOverride", width=width, height=900,
                 deviceScaleFactor=1, mobile=width < 500)
    browser.request("POST", "/se/log", {"type": "browser"})  # forget what earlier pages said
    browser.request("POST", "/url", {"url": "about:blank"})
    browser.request("POST", "/url", {"url": (folder / "report.html").as_uri()})
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return document.getElementById('title').textContent"
                       ) == f"{HOSTILE[0]} (1 of 9)"

    # sorting by a heading, both ways, of the chosen metric
    choose(browser, "metric", 1)
    for wanted in (sorted, lambda v: sorted(v, reverse=True)):
        browser.run("[...document.querySelectorAll('#scores thead button')].filter("
                    "(b) => !b.closest('th').hidden)[2].click()")
        assert browser.run(COLUMN % 2) == wanted(results.of("dim", "ssim"))
    assert browser.run("return document.querySelectorAll('#scores [aria-sort]').length") == 1

    # worst and best follow metric and system
    choose(browser, "metric", 2)  # lower is better
    choose(browser, "system", 1)
    order = np.argsort(results.of("dim", "mae"), kind="stable")
    cards = ("return [...document.querySelectorAll('#%s button')].map("
             "(card) => data.names.indexOf(card.childNodes[1].data))")
    assert browser.run(cards % "best") == list(order[:5])
    assert browser.run(cards % "worst") == list(order[::-1][:5])
    assert browser.run("return document.getElementById('right-name').textContent") == "dim"

    # or its gain over another system, which then is on the left
    choose(browser, "minus", 1)
    order = np.argsort(results.of("dim", "mae") - results.of(SYSTEM, "mae"), kind="stable")
    assert browser.run(cards % "best") == list(order[:5])
    assert browser.run(cards % "worst") == list(order[::-1][:5])
    assert browser.run("return document.getElementById('left-name').textContent") == SYSTEM
    shown = browser.run("return document.querySelector('#best b').textContent")
    gain = (results.of("dim", "mae") - results.of(SYSTEM, "mae"))[order[0]]
    assert shown.startswith(f"{gain:.1f} ")
    choose(browser, "minus", 0)
    assert browser.run("return document.getElementById('left-name').textContent") == "low"

    # a row's link shows its picture, full size, and the choice of sides is kept
    choose(browser, "left-label", data["labels"].index("reference"))
    browser.run("document.querySelector('#scores tbody tr[data-i=\"4\"] a').click()")
    time.sleep(0.3)
    assert browser.run("return document.getElementById('title').textContent"
                       ) == "a_b.png (5 of 9)"
    for side, label in (("left", "reference"), ("right", "dim")):
        source = browser.run(f"return document.getElementById('{side}').getAttribute('src')")
        assert source == data["full"][data["labels"].index(label)][4]
        assert browser.run(f"return document.getElementById('{side}').naturalWidth") == 30

    # the slider by keyboard
    browser.run("document.getElementById('slider').focus()")
    clip = "return getComputedStyle(document.getElementById('right')).clipPath"
    assert browser.run(clip) == "inset(0px 0px 0px 50%)"
    browser.key("\ue012")  # arrow to the left
    assert browser.run(clip) == "inset(0px 0px 0px 49.5%)"

    # the plots of differences: one figure a metric, of the other model alone
    figures = "[...document.querySelectorAll('h3 + .plots figure')]"
    assert browser.run(f"return {figures}.length") == len(results.metrics)
    assert browser.run(f"return {figures}.map((f) => f.querySelectorAll('g').length)") == [
        1] * len(results.metrics)
    spots = browser.run("const f = document.querySelector('h3 + .plots figure'); return "
                        "[f.querySelector('.zero').getAttribute('d').match(/[\\d.]+/)[0], ...["
                        "...f.querySelectorAll('circle')].map((c) => c.getAttribute('cx'))]")
    zero, *dots = map(float, spots)
    gains = results.of("dim", "psnr") - results.of(SYSTEM, "psnr")
    np.testing.assert_array_equal(np.sign(np.array(dots) - zero), np.sign(gains))

    # a dot of a plot shows its picture
    browser.run("document.querySelector('.plots circle[data-i=\"7\"]').dispatchEvent("
                "new MouseEvent('click', {bubbles: true}))")
    time.sleep(0.3)
    assert browser.run("return document.getElementById('title').textContent"
                       ) == f"{HOSTILE[7]} (8 of 9)"

    browser.run("document.querySelectorAll('img').forEach((i) => { i.loading = 'eager'; })")
    time.sleep(0.5)
    assert browser.run("return [...document.images].filter((i) => !i.naturalWidth).length") == 0
    assert browser.run("return performance.getEntriesByType('resource')"
                       ".filter((e) => !e.name.startsWith('file:')).length") == 0
    assert browser.request("POST", "/se/log", {"type": "browser"}) == []
