"""A detector before and after: average precision by hand, two label formats, the command."""

import csv
import json
import sys

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from lljax import images
from lljax.data import sources
from lljax.errors import InputError
from lljax.evaluation import detection
from lljax.evaluation.detection import Annotated, Annotations, Curve, match, overlaps
from lljax.evaluation.evaluate import main


def curve(scores, hits, pictures=None, objects=(4,)):
    count = len(scores)
    return Curve(np.array(scores, float), np.array(hits, bool),
                 np.zeros(count, int) if pictures is None else np.array(pictures),
                 np.array(objects, float))


# Average precision, worked out by hand.


def test_overlaps_are_those_of_continuous_boxes():
    boxes = np.array([[0, 0, 4, 2], [10, 10, 2, 2], [0, 0, 0, 5]], float)
    others = np.array([[2, 0, 4, 2], [0, 0, 4, 4], [11, 11, 2, 2]], float)
    expected = [[4 / 12, 8 / 16, 0], [0, 0, 1 / 7], [0, 0, 0]]
    np.testing.assert_allclose(overlaps(boxes, others), expected, rtol=1e-15)


def test_matching_is_greedy_and_an_object_is_found_once():
    truth = np.array([[0, 0, 10, 10], [20, 0, 10, 10]], float)
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 10, 5], [20, 0, 10, 4.9]], float)
    # The surest takes the first object; the exact box comes too late and is a false alarm. An
    # overlap of exactly one half counts, one of 0.49 does not.
    assert match(boxes, np.array([0.9, 0.8, 0.2, 0.7]), truth).tolist() == [
        True, False, True, False]
    assert match(boxes, np.array([0.1, 0.8, 0.2, 0.7]), truth).tolist() == [
        False, True, True, False]
    # A detection is given its nearest object alone, taken or not (VOC); another one overlaps too.
    near = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], float)
    assert match(np.array([[0, 0, 10, 10.0], [0, 0, 10, 9]]), np.array([2.0, 1.0]),
                 near).tolist() == [True, False]
    assert match(np.zeros((0, 4)), np.zeros(0), truth).tolist() == []
    assert match(boxes, np.ones(4), np.zeros((0, 4))).tolist() == [False] * 4


def test_average_precision_by_hand():
    # recall 1/4, 1/4, 2/4, 3/4 at precision 1, 1/2, 2/3, 3/4; the last is the best from 1/4 on
    assert curve([9, 8, 7, 6], [1, 0, 1, 1]).average_precision() == pytest.approx(
        1 / 4 * 1 + 2 / 4 * 3 / 4)
    # recall 0, 1/4, 2/4, 2/4: precision 0, 1/2, 2/3, 1/2
    assert curve([9, 8, 7, 6], [0, 1, 1, 0]).average_precision() == pytest.approx(2 / 4 * 2 / 3)
    assert curve([1, 2, 3, 4], [1] * 4).average_precision() == 1
    assert curve([1, 2], [0, 0]).average_precision() == 0
    assert curve([], []).average_precision() == 0  # nothing found
    assert np.isnan(curve([1], [0], objects=(0,)).average_precision())  # nothing to be found


def test_equal_scores_are_one_threshold_whatever_the_order():
    # one point: recall 2/4 at precision 2/3; one after the other would say 1/2 or 1/3 instead
    for hits in ([1, 1, 0], [0, 1, 1], [1, 0, 1]):
        assert curve([5, 5, 5], hits).average_precision() == pytest.approx(2 / 4 * 2 / 3)


def test_draws_count_pictures_as_often_as_they_were_drawn():
    scores, hits, pictures = [9, 8, 7, 6, 5], [1, 0, 1, 0, 1], [0, 1, 1, 2, 0]
    whole = curve(scores, hits, pictures, (2, 1, 3))
    for draws in ([1, 1, 1], [2, 0, 1], [0, 3, 0], [1, 0, 0]):
        repeated = [(score, hit) for score, hit, i in zip(scores, hits, pictures, strict=True)
                    for _ in range(draws[i])]
        expected = curve([score for score, _ in repeated], [hit for _, hit in repeated],
                         objects=(2 * draws[0] + draws[1] + 3 * draws[2],))
        assert whole.average_precision(np.array(draws, float)) == pytest.approx(
            expected.average_precision(), abs=1e-12)


# Labels.


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_both_label_formats(tmp_path):
    write(tmp_path / "face.txt", "2\r\n10 20 30 60\r\n0.5 0 2 1\r\n\r\n")
    boxes, kinds = detection.read_labels(tmp_path / "face.txt")
    assert boxes.tolist() == [[10, 20, 20, 40], [0.5, 0, 1.5, 1]] and kinds == ("face", "face")
    write(tmp_path / "none.txt", "0\n")
    assert detection.read_labels(tmp_path / "none.txt")[0].shape == (0, 4)
    write(tmp_path / "dark.txt", "% bbGt version=3\nCat 124 150 253 75 0 0 0 0 0 0 0\n"
                                 "Chair 31 31 361 231 0 0 0 0 0 0 0\n")
    boxes, kinds = detection.read_labels(tmp_path / "dark.txt")
    assert boxes.tolist() == [[124, 150, 253, 75], [31, 31, 361, 231]] and kinds == ("Cat", "Chair")


@pytest.mark.parametrize("text, reason", [
    ("", "is empty"), ("faces\n1 2 3 4\n", "its first line is 'faces'"),
    ("2\n1 2 3 4\n", "says 2 faces, but 1 lines follow"), ("1\n1 2 3\n", "line 2 holds '1 2 3'"),
    ("1\n1 2 x 4\n", "four numbers"), ("1\n1 2 nan 4\n", "four numbers"),
    ("% bbGt version=3\nCat 1 2 3\n", "line 2 holds '1 2 3'"), ("% other\n", "'% other'")])
def test_a_bad_label_file_is_one_line(tmp_path, text, reason):
    write(tmp_path / "x.txt", text)
    with pytest.raises(InputError) as caught:
        detection.read_labels(tmp_path / "x.txt")
    assert reason in str(caught.value) and "x.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def picture(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8) if pixels is None else pixels).save(path)


def test_folders_are_matched_and_what_is_left_out_is_said(tmp_path):
    for name in ("a.png", "Cat/2015_1.JPG", "Cat/2015_2.png", "lonely.png", "bad.png"):
        picture(tmp_path / "in" / name)
    write(tmp_path / "label" / "a.txt", "2\n1 2 5 6\n4 4 4 9\n")
    write(tmp_path / "label" / "cat" / "2015_1.jpg.txt", "% bbGt version=3\nCat 0 0 5 5\n")
    write(tmp_path / "label" / "Cat" / "2015_2.png.txt",
          "% bbGt version=3\nDog 0 0 5 5\nCat 1 1 5 5\n")
    write(tmp_path / "label" / "bad.txt", "one\n")
    write(tmp_path / "label" / "unused.txt", "0\n")
    found = detection.annotations(str(tmp_path / "in"), str(tmp_path / "label"))
    assert [record.name for record in found.records] == [
        "a.png", "Cat/2015_1.JPG", "Cat/2015_2.png"]
    assert found.classes == ["Cat", "Dog", "face"]
    assert len(found.broken) == 1 and "bad.txt" in found.broken[0]
    assert found.notes == ["1 pictures without a label file are left out, e.g. lonely.png",
                           "1 label files have no picture", "1 boxes without an area are left out"]
    cats = detection.annotations(str(tmp_path / "in"), str(tmp_path / "label"), ["Cat"])
    assert [len(record.boxes) for record in cats.records] == [0, 1, 1]
    assert cats.records[2].boxes.tolist() == [[1, 1, 5, 5]]
    with pytest.raises(InputError, match='unknown class "cat".*Did you mean "Cat"'):
        detection.annotations(str(tmp_path / "in"), str(tmp_path / "label"), ["cat"])
    with pytest.raises(InputError, match="--labels: no folder"):
        detection.annotations(str(tmp_path / "in"), str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no picture in .* has a label file"):
        detection.annotations(str(tmp_path / "in"), str(tmp_path / "empty"))


# A made set: blobs that can be seen only when they are bright enough.


def bright_blobs(pixels):
    """Connected regions above grey 100, with their mean grey as score."""
    grey = pixels.mean(-1)
    labels, _ = scipy.ndimage.label(grey > 100)
    found = scipy.ndimage.find_objects(labels)
    boxes = [(x.start, y.start, x.stop - x.start, y.stop - y.start) for y, x in found]
    return np.array(boxes).reshape(-1, 4), np.array([grey[place].mean() for place in found])


def named_blobs(pixels):
    boxes, scores = bright_blobs(pixels)
    return boxes, scores, ["wide" if width > height else "tall" for _, _, width, height in boxes]


def x4(pixels):
    return np.clip(pixels.astype(int) * 4, 0, 255).astype(np.uint8)


def made_set(folder, count=6):
    """Dark pictures with two blobs each, of grey 20 to 120; DARK FACE's folders and labels."""
    rng = np.random.default_rng(5)
    for i in range(count):
        pixels = rng.integers(0, 8, (40, 60, 3)).astype(np.uint8)
        lines = []
        for left in (4, 34):
            top, width, height = rng.integers((2, 6, 6), (18, 20, 20))
            pixels[top:top + height, left:left + width] = rng.integers(20, 120)
            lines.append(f"{left} {top} {left + width} {top + height}")
        picture(folder / "image" / f"{i}.png", pixels)
        write(folder / "label" / f"{i}.txt", "\n".join(["2", *lines]) + "\n")
    return ["--low", str(folder / "image"), "--labels", str(folder / "label")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    made_set(folder)
    return detection.annotations(str(folder / "image"), str(folder / "label"))


def test_a_brighter_picture_shows_more(made, tmp_path):
    results = detection.evaluate({"x4": x4}, made, bright_blobs, out=str(tmp_path),
                                 info={"source": "made up"})
    assert results.systems == ["identity", "x4", "gamma 0.4", "gamma 0.5", "HE", "CLAHE",
                               "LIME-style"]
    seen = [len(bright_blobs(images.read_rgb(record.file))[0]) for record in made.records]
    ap = {name: results.mean(name)[0] for name in results.systems}
    assert ap["identity"] == pytest.approx(sum(seen) / 12)  # no false alarm: AP is the recall
    assert ap["x4"] > ap["identity"] + 0.2 and ap["x4"] < 1  # grey below 25 stays below 100
    mean, (low, high) = results.difference("x4")
    assert mean == pytest.approx(ap["x4"] - ap["identity"]) and 0 < low < mean < high
    assert results.drawn.shape == (detection.RESAMPLES, len(results.systems), 1)
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["systems"]["x4"]["ap"]["mean"] == ap["x4"]
    assert saved["paired"]["against"] == "identity" and saved["objects"] == {"face": 12}
    assert saved["paired"]["systems"]["x4"]["ap"] == {"mean": mean, "ci95": [low, high]}
    assert saved["systems"]["identity"]["found"] == sum(seen)
    rows = list(csv.DictReader((tmp_path / "per_image.csv").open()))
    assert [int(row["found"]) for row in rows if row["system"] == "identity"] == seen
    text = detection.table(results)
    assert f"{100 * ap['x4']:.2f} [" in text and f"{100 * mean:+.2f} [{100 * low:.2f}, " in text
    assert "6 pictures of made up with 12 objects" in text
    assert (tmp_path / "results.md").read_text().startswith("Average precision of the detector:")
    assert r"\begin{tabular}" in (tmp_path / "results.tex").read_text()
    with Image.open(tmp_path / "detections.png") as sheet:
        colours = set(map(tuple, np.asarray(sheet).reshape(-1, 3)))
        assert sheet.width == 2 * (320 + 6) + 6
        assert {(60, 220, 60), (255, 60, 60)} <= colours


def test_the_same_pictures_are_drawn_before_and_after(made):
    pictures = [images.read_rgb(record.file) for record in made.records]
    first = next(pixels for pixels in pictures if len(bright_blobs(pixels)[0]))

    def less(pixels):  # blind to one picture in which something can be seen
        return np.zeros_like(pixels) if (pixels == first).all() else pixels

    results = detection.evaluate({"same": np.copy, "less": less}, made, bright_blobs)
    low, high = results.mean("identity")[1]
    assert high - low > 0.2  # pictures differ much, yet a system that changes none gains nothing
    assert results.difference("same") == (0, (0, 0))
    before, after = (results.drawn[:, results.systems.index(name), 0]
                     for name in ("identity", "less"))
    mean, (low, high) = results.difference("less")
    assert (low, high) == pytest.approx(tuple(np.quantile(after - before, (0.025, 0.975))))
    assert mean < 0 and high <= 0
    # with draws of its own for each row the interval would be wider
    apart = np.quantile(after - np.roll(before, 1), (0.025, 0.975))
    assert high - low < 0.8 * np.ptp(apart)


def test_classes_have_a_precision_each(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[2:8, 2:22] = 200  # wide
    pixels[10:34, 30:40] = 150  # tall
    picture(tmp_path / "1.png", pixels)
    boxes = np.array([[2, 2, 20, 6], [30, 10, 10, 24], [50, 2, 4, 4]], float)

    def annotated(*kinds):
        record = Annotated("1.png", str(tmp_path / "1.png"), boxes, kinds)
        return Annotations([record], sorted(set(kinds)))

    found = annotated("wide", "tall", "wide")
    results = detection.evaluate({}, found, named_blobs)
    assert results.of("identity", "tall") == (1.0, None)  # one picture has no interval
    assert results.of("identity", "wide") == (0.5, None)
    assert results.mean("identity") == (0.75, None)
    assert "mAP % (up)" in detection.table(results)
    json.loads(detection.to_json(results))
    with pytest.raises(InputError, match="names no classes.*choose one with --classes"):
        detection.evaluate({}, found, bright_blobs)
    with pytest.raises(InputError, match="finds tall, wide, but the labels have cat"):
        detection.evaluate({}, annotated("cat", "cat", "cat"), named_blobs)


@pytest.mark.parametrize("detector, reason", [
    (lambda p: None, "not NoneType"), (lambda p: ([[1, 2, 3]], [1]), "shape (1, 3)"),
    (lambda p: ([[1, 2, 3, 4]], [1, 2]), "scores of shape (2,)"),
    (lambda p: ([[1, 2, -3, 4]], [1]), "below 0"), (lambda p: ([[1, 2, 3, 4]], [np.nan]), "finite"),
    (lambda p: ([[1, 2, 3, 4], [1, 2]], [1, 2]), "no arrays of numbers"),
    (lambda p: ([[1, 2, 3, 4]], ["high"]), "no arrays of numbers"),
    (lambda p: ([[1, 2, 3, 4]], [1], ["a", "b"]), "2 class names")])
def test_a_detector_that_returns_something_else_is_named(made, detector, reason):
    with pytest.raises(InputError) as caught:
        detection.evaluate({}, made, detector, limit=1)
    assert reason in str(caught.value) and "identity on 0.png" in str(caught.value)


def test_other_bad_input(made, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="x2 on 0.png.*one size"):
        detection.evaluate({"x2": lambda p: p[::2]}, made, bright_blobs, limit=1)
    with pytest.raises(InputError, match="'identity'"):
        detection.evaluate({"identity": x4}, made, bright_blobs)
    with pytest.raises(ZeroDivisionError) as caught:
        detection.evaluate({}, made, lambda p: 1 // 0, limit=1)
    assert caught.value.__notes__ == ["while evaluating identity on 0.png"]
    with pytest.raises(InputError, match="write FILE.onnx"):
        detection.load("somewhere")
    (tmp_path / "broken_detector.py").write_text("def find(:\n")
    monkeypatch.chdir(tmp_path)
    for module, said in (("no_such_module", "ModuleNotFoundError"), ("./blobs.py", "TypeError"),
                         ("broken_detector", "SyntaxError")):
        with pytest.raises(InputError) as refused:
            detection.load(f"{module}:find")
        assert f"{module} cannot be imported from here ({said}: " in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match='Did you mean "bright_blobs"'):
        detection.load("tests.test_detection:bright_blob")
    assert detection.load("tests.test_detection:bright_blobs") is not None


# The command.


def test_the_command(tmp_path, monkeypatch, capsys):
    from lljax.inference import enhancer
    monkeypatch.chdir(tmp_path)
    flags = made_set(tmp_path / "set")
    (tmp_path / "mine.py").write_text("from tests.test_detection import bright_blobs as find\n")
    broken = tmp_path / "set" / "image" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    monkeypatch.setattr(enhancer, "load", lambda *arguments, **named: x4)
    code = main(["evaluate.py", "--weights", "w/bright.safetensors", "--detector", "mine:find",
                 *flags])
    out, err = capsys.readouterr()
    assert code == 1 and err.startswith("error: left out: ") and "3.png" in err
    assert "5 of 6 pictures" in out and out.endswith("detections.png to detect_image\n")
    saved = json.loads((tmp_path / "detect_image" / "results.json").read_text())
    assert list(saved["systems"])[:2] == ["identity", "bright"]
    assert saved["pictures"] == 5 and len(saved["left_out"]) == 1
    assert saved["detector"] == "mine:find" and saved["models"] == {
        "bright": "w/bright.safetensors"}
    assert saved["paired"]["systems"]["bright"]["ap"]["mean"] > 0.1


@pytest.mark.parametrize("argv, part", [
    (["--detector", "a:b"], "give --low DIR"), (["--labels", "x"], "go with --detector"),
    (["--detector", "a:b", "--low", "x", "--labels", "y", "--report", "r"], "--report does not"),
    (["--detector", "a:b", "--low", "x", "--labels", "y", "--split", "test"], "--split does not"),
    (["--detector", "a:b", "--low", "x", "--labels", "y", "--root", "r"], "--root does not"),
    (["--detector", "a.onnx", "--low", "x", "--labels", "y"], "a.onnx")])
def test_bad_flags_are_one_line(argv, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=part) as caught:
        main(["evaluate.py", *argv])
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


# YuNet: OpenCV's own code around a network with its outputs, made here: the score of a square of
# 32 px is its mean grey, its box the square. (The real model is the user's.)


def field(number, value):
    """A field of a protocol buffer message: a number, or bytes."""
    def varint(n):
        out = b""
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def node(kind, inputs, output, **attributes):
    parts = b"".join(field(1, name) for name in inputs) + field(2, output) + field(3, output)
    parts += field(4, kind)
    for name, values in attributes.items():
        single = isinstance(values, int)
        body = field(3, values) if single else b"".join(field(8, v) for v in values)
        parts += field(5, field(1, name) + body + field(20, 2 if single else 7))
    return field(1, parts)


def constant(name, values, integers=False):
    values = np.asarray(values, np.int64 if integers else np.float32)
    parts = b"".join(field(1, n) for n in values.shape)
    return field(5, parts + field(2, 7 if integers else 1) + field(8, name)
                 + field(9, values.tobytes()))


def tensor(number, name, shape):
    dims = b"".join(field(1, field(1, n)) for n in shape)
    return field(number, field(1, name) + field(2, field(1, field(1, 1) + field(2, dims))))


def write_yunet(path, side=64):
    nodes = node("Mul", ["input", "weights"], "grey3") + node(
        "Conv", ["grey3", "sum"], "grey", kernel_shape=[1, 1])
    outputs, constants = b"", b""
    constants += constant("weights", np.full((1, 3, 1, 1), 1 / 3 / 255)) + constant(
        "sum", np.ones((1, 3, 1, 1)))
    constants += constant("zero", [0.0])
    for name, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            out, cells = f"{name}_{stride}", (side // stride) ** 2
            nodes += node("AveragePool", ["grey"], f"{out}_mean", kernel_shape=[stride, stride],
                          strides=[stride, stride])
            quiet = name in ("bbox", "kps") or (name == "cls" and stride < 32)
            if quiet:
                nodes += node("Mul", [f"{out}_mean", "zero"], f"{out}_kept")
            kept = f"{out}_kept" if quiet else f"{out}_mean"
            constants += constant(f"{out}_shape", [1, -1, 1], integers=True)
            nodes += node("Reshape", [kept, f"{out}_shape"], f"{out}_flat" if width > 1 else out)
            if width > 1:
                nodes += node("Concat", [f"{out}_flat"] * width, out, axis=2)
            outputs += tensor(12, out, (1, cells, width))
    graph = nodes + field(2, "yunet") + constants
    graph += tensor(11, "input", (1, 3, side, side)) + outputs
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)))


def test_yunet_by_opencv(tmp_path):
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'lljax[detect]'")
    write_yunet(tmp_path / "yunet.onnx")
    detector = detection.load(str(tmp_path / "yunet.onnx"))
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[32:, 64:] = (255, 128, 64)
    found = detection.detect(detector, pixels)
    assert found.kinds is None and len(found.scores) == 1
    assert found.boxes[0].tolist() == pytest.approx([48, 16, 32, 32])
    assert found.scores[0] == pytest.approx((255 + 128 + 64) / 3 / 255, abs=1e-4)
    assert len(detection.detect(detector, np.zeros((70, 50, 3), np.uint8)).boxes) == 0
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match="cannot read it as a model") as caught:
        detection.load(str(tmp_path / "text.onnx"))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        detection.load(str(tmp_path / "none.onnx"))


def test_the_real_yunet_finds_faces_in_the_dark(shared):
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'lljax[detect]'")
    model = shared / "data" / "weights" / "yunet" / "yunet_n_640_640.onnx"
    if not model.exists():
        pytest.skip("YuNet's model is not here")
    detector = detection.load(str(model))
    pairs = sources.open("demo", split="train")
    dark = next(pair for pair in pairs if pair["name"] == "musicians_evening")
    faces = np.array([[63, 57, 26, 37], [173, 64, 30, 39], [303, 130, 28, 44], [341, 125, 47, 64],
                      [388, 123, 64, 87]], float)  # boxed by hand
    for pixels in (dark["high"], dark["low"]):
        found = detection.detect(detector, pixels)
        surest = np.argsort(-found.scores)[:5]
        assert match(found.boxes[surest], found.scores[surest], faces).all()


def test_without_opencv_yunet_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"pip install 'lljax\[detect\]'"):
        detection.load("model.onnx")
