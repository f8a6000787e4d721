"""`lljax serve`: what the API answers, what the worker runs, and the page in a browser."""

import http.client
import io
import json
import logging
import pathlib
import re
import tempfile
import threading
import time
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("flask", reason="lljax[web] is not installed")
pytest.importorskip("waitress", reason="lljax[web] is not installed")

from waitress import wasyncore  # noqa: E402

import lljax  # noqa: E402
from lljax import cli  # noqa: E402
from lljax.errors import InputError  # noqa: E402
from lljax.inference.web import server, uploads, worker  # noqa: E402
from lljax.weights import DEFAULT  # noqa: E402

PATIENCE = 120  # seconds: other work on the machine may slow everything
OTHER = "zerodce"  # a second model
SIDE = 32  # of every picture: one size, one program
LIMITS = server.Limits(bytes=300_000, pixels=40_000, queue=6, timeout=PATIENCE)
WEIGHTS = pathlib.Path(lljax.__file__).parent / "weights" / f"{DEFAULT}.safetensors"


def dark(seed=0, side=SIDE):
    return np.random.default_rng(seed).integers(0, 60, (side, side, 3)).astype(np.uint8)


def file_of(pixels, form="PNG", **options):
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, form, **options)
    return out.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data))


@pytest.fixture(scope="module")
def models():
    return server.load([DEFAULT, OTHER])


@pytest.fixture(scope="module")
def bright(models):
    """The enhancer of the default model."""
    return models[DEFAULT].enhancer


@pytest.fixture(scope="module")
def served(models):
    """(application, its worker)"""
    app, working = server.create(models, LIMITS)
    yield app, working
    working.close()


@pytest.fixture(scope="module")
def app(served):
    return served[0]


@pytest.fixture
def client(app):
    return app.test_client()


def send(client, data, name="a.png", path="/api/enhance", **fields):
    return client.post(path, data={"file": (io.BytesIO(data), name), **fields})


# What comes back.


def test_a_form_and_a_bare_body_give_the_enhanced_picture(client, bright):
    data = file_of(dark())
    form = send(client, data, "night.png")
    body = client.post("/api/enhance", data=data, content_type="image/png")
    curl = client.post("/api/enhance", data=data,  # what curl --data-binary says if not told
                       content_type="application/x-www-form-urlencoded")
    assert form.status_code == body.status_code == curl.status_code == 200
    assert form.data == body.data == curl.data
    assert form.mimetype == "image/png"
    assert form.headers["Content-Disposition"] == "attachment; filename=night.png"
    assert body.headers["Content-Disposition"] == "attachment; filename=picture.png"
    np.testing.assert_array_equal(np.asarray(opened(form.data)), bright(dark()))


def test_each_keeps_its_format_depth_alpha_and_metadata(client, bright):
    colour, grey16 = Image.fromarray(dark()), np.arange(SIDE * SIDE, dtype=np.uint16) * 9
    rgba = np.dstack([dark(), np.full((SIDE, SIDE), 77, np.uint8)])
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    cases = {
        "a.jpg": file_of(colour, "JPEG", quality=95, exif=exif),
        "B.JPEG": file_of(colour.convert("CMYK"), "JPEG"),
        "c.png": file_of(grey16.reshape(SIDE, SIDE)),
        "d.png": file_of(rgba),
        "e.tif": file_of(colour, "TIFF", compression="tiff_lzw", dpi=(300, 300)),
        "f.bmp": file_of(colour, "BMP"),
        "g.gif": file_of(colour.quantize(16), "GIF"),
        "h.webp": file_of(colour, "WEBP", lossless=True),
        "i.pgm": file_of(colour.convert("L"), "PPM"),
    }
    for name, data in cases.items():
        answer = send(client, data, name)
        assert answer.status_code == 200, (name, answer.data)
        assert answer.headers["Content-Disposition"].endswith(f"filename={name}")
        before, after = opened(data), opened(answer.data)
        assert (after.format, after.size) == (before.format, before.size), name
        if name != "B.JPEG":
            assert after.mode == before.mode or (before.mode, after.mode) == ("P", "RGB"), name
        assert answer.mimetype == Image.MIME[after.format]
    after = opened(send(client, cases["a.jpg"], "a.jpg").data).getexif()
    assert (after[0x0112], after[0x010F]) == (1, "a maker")
    after = np.asarray(opened(send(client, cases["c.png"]).data))
    assert after.dtype == np.uint16 and len(np.unique(after)) > 500
    assert set(opened(send(client, cases["d.png"]).data).getchannel("A").tobytes()) == {77}
    assert opened(send(client, cases["e.tif"], "e.tif").data).info["dpi"] == (300, 300)


def test_a_name_keeps_what_a_name_may_hold_and_gets_the_suffix_of_its_format(client):
    for name, wanted in (("../../etc/pass wd.png", 'filename="pass wd.png"'),
                         ("not.jpg", "filename=not.png"),
                         ("日本.png", "filename*=UTF-8''%E6%97%A5%E6%9C%AC.png")):
        header = send(client, file_of(dark()), name).headers["Content-Disposition"]
        assert header.endswith(wanted), header


def test_strength_is_the_share_of_the_change(client, bright):
    low, enhanced, data = dark(), bright(dark()), file_of(dark())
    for strength in (0, 0.25, 0.5, 1):
        got = np.asarray(opened(send(client, data, strength=str(strength)).data)).astype(float)
        assert abs(got - (low + strength * (enhanced.astype(float) - low))).max() <= 0.501
    again = send(client, data, path="/api/enhance?strength=0.25")
    assert again.data == send(client, data, strength="0.25").data


def test_another_model_may_be_asked_for(client, models, bright):
    data = file_of(dark())
    other = send(client, data, model=OTHER)
    assert other.data == send(client, data, path=f"/api/enhance?model={OTHER}").data
    got = np.asarray(opened(other.data))
    np.testing.assert_array_equal(got, models[OTHER].enhancer(dark()))
    assert (got != bright(dark())).mean() > 0.5
    assert send(client, data, model=DEFAULT).data == send(client, data).data != other.data


def test_another_format_may_be_asked_for(client, bright):
    answer = send(client, file_of(dark(), "TIFF"), "a.tif", format="png")
    assert answer.headers["Content-Disposition"].endswith("filename=a.png")
    np.testing.assert_array_equal(np.asarray(opened(answer.data)), bright(dark()))


def test_maps_come_in_a_zip_with_the_picture(client, bright):
    data = file_of(dark(), "JPEG")
    answer = send(client, data, "a.jpg", maps="1")
    assert answer.mimetype == "application/zip"
    assert answer.headers["Content-Disposition"].endswith("filename=a.zip")
    with zipfile.ZipFile(io.BytesIO(answer.data)) as archive:
        assert archive.namelist() == ["a.jpg", "a_curves.png"]
        assert archive.read("a.jpg") == send(client, data, "a.jpg").data
        drawn = bright.draw(np.asarray(opened(data)))[1]["curves"]
        np.testing.assert_array_equal(np.asarray(opened(archive.read("a_curves.png"))), drawn)


def test_what_the_server_tells_of_itself(client):
    about = client.get("/api/models").json
    assert about["models"] == [{"name": name, "method": name, "maps": ["curves"],
                                "licence": "CC BY-NC 4.0"} for name in (DEFAULT, OTHER)]
    assert about["default"] == DEFAULT and ".tif" in about["formats"]
    assert about["limits"] == {"bytes": 300_000, "pixels": 40_000, "queue": 6,
                               "timeout": PATIENCE}
    health = client.get("/api/health")
    assert health.status_code == 200
    assert health.json["status"] == "ok" and health.json["pictures"] == 0


def test_the_page_is_ours_alone(client):
    page = client.get("/").get_data(as_text=True)
    for path in re.findall(r'(?:src|href)="([^"]+)"', page):
        answer = client.get("/" + path)
        assert answer.status_code == 200, path
        assert "http:" not in answer.get_data(as_text=True).replace("http://www.w3.org/", "")
    for path in ("/", "/page.js", "/api/health", "/nothing"):
        headers = client.get(path).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert "unsafe" not in headers["Content-Security-Policy"]


# What does not come back.


GOOD = file_of(dark())
CUT = file_of(Image.fromarray(dark()), "JPEG", quality=95)[:-200]
FRAMES = file_of(Image.fromarray(dark()), "GIF", save_all=True,
                 append_images=[Image.fromarray(dark(1))])


@pytest.mark.parametrize(("status", "said", "data", "fields"), [
    (415, "a.png: not a picture in a known format", b"no picture", {}),
    (400, "a.png: the file is empty", b"", {}),
    (400, "a.png: cannot be read", CUT, {}),
    (400, "a.png: has 2 frames", FRAMES, {}),
    (413, "more than 300,000 bytes", bytes(300_001), {}),
    (413, "more than 300,000 bytes", bytes(400_000), {}),
    (413, "more than 40,000 pixels; cut or shrink it first (it is 201 x 201)",
     file_of(Image.new("RGB", (201, 201))), {}),
    (413, "more than 40,000 pixels", file_of(Image.new("1", (20_000, 20_000)), "TIFF",
                                             compression="group4"), {}),
    (400, 'unknown model "zerodec". Did you mean "zerodce"? Known: zerodce, zerodcepp', GOOD,
     {"model": "zerodec"}),
    (400, "strength 1.5: give a number from 0 to 1", GOOD, {"strength": "1.5"}),
    (400, "strength nan: give a number", GOOD, {"strength": "nan"}),
    (400, "strength half: give a number", GOOD, {"strength": "half"}),
    (400, "maps yes: give 0 or 1", GOOD, {"maps": "yes"}),
    (400, 'unknown format "tifff". Did you mean "tiff"?', GOOD, {"format": "tifff"}),
    (400, 'unknown field "strenght". Did you mean "strength"?', GOOD, {"strenght": "1"}),
    (400, "JPEG cannot hold the alpha", file_of(Image.new("RGBA", (SIDE, SIDE))),
     {"format": "jpg"}),
])
def test_an_error_is_a_status_and_one_line(client, status, said, data, fields):
    answer = send(client, data, **fields)
    assert answer.status_code == status, answer.data
    assert set(answer.json) == {"error"}
    assert said in answer.json["error"] and "\n" not in answer.json["error"]


def test_errors_of_the_request_itself(client):
    two = {"file": [(io.BytesIO(GOOD), "a.png"), (io.BytesIO(GOOD), "b.png")]}
    for answer, status, said in (
            (client.post("/api/enhance", data={"model": "zerodce"},
                         content_type="multipart/form-data"), 400, "0 pictures in the form"),
            (client.post("/api/enhance", data=two), 400, "2 pictures in the form"),
            (client.post("/api/enhance", data={"picture": (io.BytesIO(GOOD), "a.png")}), 400,
             'unknown field "picture"'),
            (client.post("/api/enhance"), 400, "the file is empty"),
            (client.get("/api/enhance"), 405, "not allowed"),
            (client.get("/api/enhanced"), 404, "not found"),
            (client.post("/api/enhance", data=GOOD, headers={"Sec-Fetch-Site": "cross-site"}), 403,
             "pages of other sites")):
        assert answer.status_code == status
        assert said in answer.json["error"]


# The worker.


class Slow:
    """Brightens by one, when it is let."""

    def __init__(self):
        self.go, self.begun = threading.Event(), threading.Event()
        self.calls = []

    def __call__(self, pixels):
        self.begun.set()
        assert self.go.wait(PATIENCE)
        self.calls.append(pixels.shape)
        if (pixels == 66).any():
            raise RuntimeError("sixty-six\nis not liked")
        return pixels + 1

    method = types.SimpleNamespace(config=types.SimpleNamespace(method="slow"))


@pytest.fixture
def slow():
    """(model, application, worker) with two places behind the one that runs."""
    model = Slow()
    limits = server.Limits(bytes=100_000, pixels=40_000, queue=3, timeout=PATIENCE)
    app, working = server.create({"slow": server.Model(model, None, ())}, limits)
    yield model, app, working
    model.go.set()
    working.close()
    assert not working.alive


def plain(value=0, side=8):
    return file_of(np.full((side, side, 3), value, np.uint8))


class Sender(threading.Thread):
    """A request from another thread; its answer is `status` and `json`."""

    def __init__(self, app, data, gone=lambda: False, **fields):
        super().__init__(daemon=True)
        self.app, self.data, self.gone, self.fields = app, data, gone, fields
        self.start()

    def run(self):
        answer = self.app.test_client().post(
            "/api/enhance", data={"file": (io.BytesIO(self.data), "a.png"), **self.fields},
            environ_base={"waitress.client_disconnected": self.gone})
        self.status, self.answer = answer.status_code, answer

    def done(self):
        self.join(PATIENCE)
        assert not self.is_alive()
        return self.status


def until(true):
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_server_says_when_to_come_again(slow):
    model, app, working = slow
    taken = [Sender(app, plain())]
    assert model.begun.wait(PATIENCE)
    taken += [Sender(app, plain()) for _ in range(2)]
    until(lambda: working.inside == 3)
    refused = app.test_client().post("/api/enhance", data=plain())
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert "busy; try again in" in refused.json["error"]
    model.go.set()
    assert [sender.done() for sender in taken] == [200] * 3
    assert app.test_client().post("/api/enhance", data=plain()).status_code == 200


def test_a_picture_whose_time_is_over_is_not_computed(slow, monkeypatch):
    model, app, working = slow
    first = Sender(app, plain())
    assert model.begun.wait(PATIENCE)
    monkeypatch.setattr(working, "_timeout", 0.2)
    late = Sender(app, plain(side=9))
    assert late.done() == 504
    assert "not done within" in late.answer.json["error"]
    model.go.set()
    assert first.done() == 200
    assert working.inside == 0 and model.calls == [(8, 8, 3)]


def test_a_server_that_ends_sends_away_what_waits(slow):
    model, app, working = slow
    first = Sender(app, plain())
    assert model.begun.wait(PATIENCE)
    second = Sender(app, plain())
    until(lambda: len(working._jobs) == 1)
    working.close(0)
    assert [first.done(), second.done()] == [503, 503]
    assert second.answer.json == {"error": "the server is ending"}


def test_a_picture_whose_client_has_gone_is_not_computed(slow):
    model, app, working = slow
    first = Sender(app, plain())
    assert model.begun.wait(PATIENCE)
    gone = threading.Event()
    left = Sender(app, plain(side=9), gone.is_set)
    until(lambda: working.inside == 2)
    gone.set()
    assert left.done() == 499
    model.go.set()
    assert first.done() == 200
    assert model.calls == [(8, 8, 3)]


def test_pictures_of_one_size_and_setting_run_as_one_batch():
    model = Slow()
    working = worker.Worker({"slow": model}, places=12, room=10**6, timeout=PATIENCE)
    got = {}

    def ask(name, value, side=8, **settings):
        def run():
            with working.place(lambda: False) as ticket:
                pixels = np.full((side, side, 3), value, np.uint8)
                try:
                    got[name] = ticket.run("slow", pixels, **settings)[0][0, 0, 0]
                except RuntimeError as error:
                    got[name] = str(error)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        until(lambda: len(working._jobs) >= len(threads) if threads else model.begun.is_set())
        threads.append(thread)

    threads = []
    ask("first", 1)
    for i in range(3):
        ask(f"same {i}", 10 * i)
    ask("other size", 1, side=9)
    ask("half", 1, strength=0.0)
    ask("disliked", 66, side=7)
    ask("liked", 65, side=7)
    model.go.set()
    for thread in threads:
        thread.join(PATIENCE)
    working.close()
    assert got == {"first": 2, "same 0": 1, "same 1": 11, "same 2": 21, "other size": 2,
                   "half": 1, "disliked": "sixty-six\nis not liked", "liked": 66}
    assert model.calls == [(8, 8, 3), (3, 8, 8, 3), (9, 9, 3), (2, 7, 7, 3), (7, 7, 3), (7, 7, 3)]


def test_decoding_waits_for_room_in_the_order_of_arrival():
    working = worker.Worker({}, places=9, room=100, timeout=PATIENCE)
    order = []

    def ask(name, pixels, leave):
        def run():
            with working.place(lambda: False) as ticket:
                ticket.make_room(pixels)
                order.append(name)
                leave.wait(PATIENCE)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    leaves = [threading.Event() for _ in range(3)]
    threads = [ask("large", 80, leaves[0])]
    until(lambda: order)
    threads.append(ask("as large", 80, leaves[1]))
    until(lambda: working._asking)
    threads.append(ask("small", 10, leaves[2]))  # there is room, but it is not its turn
    until(lambda: len(working._asking) == 2)
    leaves[0].set()
    until(lambda: len(order) == 3)
    for leave in leaves:
        leave.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert order == ["large", "as large", "small"]
    assert (working.inside, working._room) == (0, 100)
    working.close()


def test_a_fault_of_ours_is_one_line_and_logged(slow, caplog):
    model, app, _ = slow
    model.go.set()
    with caplog.at_level(logging.ERROR):
        answer = app.test_client().post("/api/enhance", data=plain(66))
    assert answer.status_code == 500
    assert answer.json == {"error": "RuntimeError in the server; its log says more"}
    assert "sixty-six" in caplog.text
    assert app.test_client().post("/api/enhance", data=plain()).status_code == 200


def test_bodies_share_their_room():
    room = uploads.Room(each=10, together=15)
    first, second, third = (uploads._Body(room) for _ in range(3))
    first.append(b"12345")
    first.append(b"67890")
    second.append(b"123456")
    assert second.getfile().dropped == "crowded" and len(second) == 6
    assert first.getfile().read() == b"1234567890"
    first.close()
    first.close()
    third.append(b"1234567890")
    assert third.getfile().read() == b"1234567890" and third.getfile().dropped == ""
    third.append(b"1")
    assert third.getfile().dropped == "large" and len(third) == 11
    assert room.take(15) and not room.take(1)


# Over the network.


@pytest.fixture(scope="module")
def address(app):
    """(host, port) of the application behind waitress."""
    opened = server.open_server(app, LIMITS, "127.0.0.1", 0)
    thread = threading.Thread(target=opened.run, daemon=True)
    thread.start()
    yield opened.effective_host, int(opened.effective_port)
    opened.trigger.pull_trigger(lambda: wasyncore.close_all(opened._map))
    thread.join(10)
    opened.task_dispatcher.shutdown()


def post(address, data, path="/api/enhance", **options):
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
    connection.request("POST", path, data, **options)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def form_of(data, name="a.png"):
    """(body, headers) of a form that holds a file."""
    body = (b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode()
            + b'"\r\n\r\n' + data + b"\r\n--x--\r\n")
    return body, {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.fixture
def no_files(monkeypatch):
    """Whoever makes a temporary file fails."""
    def refuse(*args, **kwargs):
        raise AssertionError("a temporary file")
    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)


def test_nothing_is_written_to_a_disk(app, no_files):
    limits = server.Limits(bytes=5_000_000, pixels=10**7)
    large = file_of(dark(side=1000))  # over waitress's and werkzeug's thresholds, in and out
    assert len(large) > 2_000_000
    idle, working = server.create({"slow": server.Model(Slow(), None, ())}, limits)
    opened_server = server.open_server(idle, limits, "127.0.0.1", 0)
    thread = threading.Thread(target=opened_server.run, daemon=True)
    thread.start()
    body, headers = form_of(large)
    answer, content = post(("127.0.0.1", int(opened_server.effective_port)), body,
                           "/api/enhance?strength=0", headers=headers)
    assert answer.status == 200
    np.testing.assert_array_equal(np.asarray(opened(content)), dark(side=1000))
    opened_server.trigger.pull_trigger(lambda: wasyncore.close_all(opened_server._map))
    thread.join(10)
    opened_server.task_dispatcher.shutdown()
    working.close()


def test_a_body_far_too_large_is_answered_all_the_same(address):
    body, headers = form_of(bytes(10_000_000))
    pieces = (bytes(100_000) for _ in range(50))
    for sent, options in ((body, {"headers": headers}), (pieces, {"encode_chunked": True})):
        answer, content = post(address, sent, **options)
        assert answer.status == 413
        assert "more than 300,000 bytes" in json.loads(content)["error"]
    answer, content = post(address, iter([GOOD[:50], GOOD[50:]]), encode_chunked=True)
    assert answer.status == 200 and opened(content).size == (SIDE, SIDE)


def test_fifty_at_once_are_all_answered_within_bounds(address, served, bright, monkeypatch):
    working, places, rooms = served[1], [], []
    make_room, take = worker.Worker.make_room, uploads.Room.take

    def watched(self, ticket, pixels):
        make_room(self, ticket, pixels)
        places.append((self.inside, self._room))

    monkeypatch.setattr(worker.Worker, "make_room", watched)
    monkeypatch.setattr(uploads.Room, "take",
                        lambda self, count: take(self, count) and (rooms.append(self) or True))
    expected = {seed: bright(dark(seed)) for seed in range(4)}
    whole = working._room
    answers, refusals = {}, []

    def ask(number):
        body, headers = form_of(file_of(dark(number % 4)))
        while True:
            answer, content = post(address, body, headers=headers)
            if answer.status != 503:
                break
            refusals.append(json.loads(content)["error"])
            time.sleep(float(answer.headers["Retry-After"]))
        answers[number] = answer.status, content

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(answers) == list(range(50))
    for number, (status, content) in answers.items():
        assert status == 200, content
        np.testing.assert_array_equal(np.asarray(opened(content)), expected[number % 4])
    assert all("busy; try again in" in said for said in refusals)
    # pictures in hand, pixels decoded and bytes received: each within its bound, all given back
    assert len(places) == 50
    assert max(inside for inside, _ in places) <= LIMITS.queue
    assert min(room for _, room in places) >= whole - LIMITS.queue * SIDE * SIDE
    until(lambda: (working.inside, working._room) == (0, whole))
    left = server._TOGETHER * (LIMITS.bytes + server._ENVELOPE)
    until(lambda: {room._left for room in rooms} == {left})


# The command.


@pytest.mark.parametrize(("arguments", "said"), [
    (["--model", "zerodec"], 'Did you mean "zerodce"?'),
    (["--queue", "0"], "--queue 0: give a number above 0"),
    (["--timeout", "nan"], "--timeout nan: give a number above 0"),
    (["--port", "70000"], "--port 70000: give a number from 0 to 65535"),
    (["--hots", "x"], 'Did you mean "--host"?'),
    (["--model", DEFAULT, "--model", str(WEIGHTS)], "two models go by the name"),
])
def test_a_wrong_option_is_one_line(arguments, said):
    with pytest.raises(InputError, match=re.escape(said)) as raised:
        cli.main(["lljax", "serve", *arguments])
    assert "\n" not in str(raised.value)


def test_a_port_in_use_is_said(address, app):
    with pytest.raises(InputError, match="cannot listen at 127.0.0.1:.* choose another --port"):
        server.open_server(app, LIMITS, *address)


# In a browser.


@pytest.fixture
def page(browser, address, tmp_path):
    """The browser with the empty page; downloads go to a folder `files`."""
    browser.connect(True)
    browser.tool("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.request("POST", "/se/log", {"type": "browser"})  # forget what earlier pages said
    browser.request("POST", "/url", {"url": f"http://{address[0]}:{address[1]}/"})
    until(lambda: browser.run("return document.getElementById('model').value") == DEFAULT)
    browser.files = tmp_path
    browser.said = lambda name: browser.run(
        f"return document.getElementById('{name}').textContent")
    browser.seen = lambda name: browser.run(
        f"return document.getElementById('{name}').checkVisibility()")
    yield browser
    assert browser.run("return performance.getEntriesByType('resource').map((e) => e.name).filter("
                       "(n) => !n.startsWith(location.origin) && !n.startsWith('blob:'))") == []


def element(browser, selector):
    found = browser.request("POST", "/element", {"using": "css selector", "value": selector})
    return next(iter(found.values()))


def upload(browser, path):
    browser.request("POST", f"/element/{element(browser, '#file')}/value", {"text": str(path)})


def click(browser, selector):
    browser.request("POST", f"/element/{element(browser, selector)}/click", {})


def ready(browser):
    until(lambda: browser.run("return !running && !!result"))


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_enhances_a_picture(page, client, bright, tmp_path, width):
    page.tool("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1,
              mobile=width < 500)
    data = file_of(dark(), "JPEG", quality=95)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "night 1.jpg").write_bytes(data)
    assert page.seen("drop") and not page.seen("viewer") and not page.seen("download")
    upload(page, tmp_path / "in" / "night 1.jpg")
    ready(page)
    assert page.seen("viewer") and not page.seen("drop") and not page.seen("error")
    assert page.said("name") == "night 1.jpg" and page.said("facts").startswith("32 × 32")
    assert page.said("licence").endswith("CC BY-NC 4.0")
    assert page.run("return document.documentElement.scrollWidth") <= width

    # the slider: by keyboard, and where it is pressed
    clip = "return getComputedStyle(document.getElementById('after')).clipPath"
    assert page.run(clip) == "inset(0px 0px 0px 50%)"
    page.run("document.getElementById('at').focus()")
    page.key("\ue012")  # arrow to the left
    assert page.run(clip) == "inset(0px 0px 0px 49.5%)"
    box = page.run("const r = document.getElementById('at').getBoundingClientRect();"
                   "return [r.left, r.top, r.width, r.height]")
    kind = "touch" if width < 500 else "mouse"
    moves = [{"type": "pointerMove", "duration": 0, "x": round(box[0] + box[2] * share),
              "y": round(box[1] + box[3] / 2)} for share in (0.5, 0.35, 0.2)]
    page.request("POST", "/actions", {"actions": [{
        "type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": [
            moves[0], {"type": "pointerDown", "button": 0}, *moves[1:],
            {"type": "pointerUp", "button": 0}]}]})
    at = float(re.search(r"([\d.]+)%\)", page.run(clip))[1])
    assert at == pytest.approx(20, abs=2)

    # what is downloaded is what the API gives, strength included
    page.run("const s = document.getElementById('strength'); s.value = 0.5;"
             "s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change'));")
    assert page.said("strength-text") == "50 %"
    until(lambda: page.run("return !running && result.settings.strength") == "0.5")
    click(page, "#download")
    until(lambda: (page.files / "night 1.jpg").exists())
    assert (page.files / "night 1.jpg").read_bytes() == send(
        client, data, "night 1.jpg", strength="0.5").data

    # the maps
    click(page, "#maps summary")
    until(lambda: page.run("return document.querySelectorAll('#drawn img').length") == 1)
    wide = bright.draw(dark())[1]["curves"].shape[1]
    until(lambda: page.run("return document.querySelector('#drawn img').naturalWidth") == wide)
    assert page.run("return document.querySelector('#drawn a').download") == "night 1_curves.png"

    click(page, "#another")
    assert page.seen("drop") and not page.seen("viewer") and not page.seen("download")
    assert page.request("POST", "/se/log", {"type": "browser"}) == []


def test_the_page_offers_every_model(page, client, tmp_path):
    data = file_of(dark())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "night.png").write_bytes(data)
    assert page.run("return [...document.getElementById('model').options].map((o) => o.value)"
                    ) == [DEFAULT, OTHER]
    upload(page, tmp_path / "in" / "night.png")
    ready(page)
    assert page.run("return result.settings.model") == DEFAULT
    page.run(f"const m = document.getElementById('model'); m.value = '{OTHER}';"
             "m.dispatchEvent(new Event('change'));")
    until(lambda: page.run("return !running && result.settings.model") == OTHER)
    click(page, "#download")
    until(lambda: (page.files / "night.png").exists())
    assert (page.files / "night.png").read_bytes() == send(
        client, data, "night.png", model=OTHER).data
    click(page, "#maps summary")
    until(lambda: page.run("return document.querySelectorAll('#drawn img').length") == 1)
    assert page.request("POST", "/se/log", {"type": "browser"}) == []


def test_a_file_that_is_no_picture_is_said_and_the_next_one_works(page, client, tmp_path):
    bad = tmp_path / "notes.png"
    bad.write_text("no picture")
    upload(page, bad)
    until(lambda: page.seen("error"))
    assert page.said("error").startswith("notes.png: not a picture in a known format")
    until(lambda: page.run("return !running"))
    assert page.seen("drop") and not page.seen("viewer") and not page.seen("download")

    large = tmp_path / "large.png"
    large.write_bytes(bytes(300_001))
    upload(page, large)
    until(lambda: page.said("error").startswith("large.png: 300 kB, and this server takes at"))

    # a TIFF, which the browser cannot show, dropped on the page
    data = file_of(dark(), "TIFF")
    page.run("const files = new DataTransfer(); files.items.add(new File([new Uint8Array("
             f"{list(data)})], 'scan.tif')); dispatchEvent(new DragEvent('drop', "
             "{dataTransfer: files, cancelable: true}));")
    ready(page)
    assert not page.seen("error") and page.said("name") == "scan.tif"
    assert page.run("return [before, after].map((image) => image.naturalWidth)") == [32, 32]
    click(page, "#download")
    until(lambda: (page.files / "scan.tif").exists())
    assert (page.files / "scan.tif").read_bytes() == send(client, data, "scan.tif").data


def test_a_busy_server_is_asked_again(page, app, tmp_path, monkeypatch):
    picture = tmp_path / "a.png"
    picture.write_bytes(GOOD)
    full = iter([True])
    place = worker.Worker.place

    def busy_once(self, gone):
        if next(full, False):
            raise worker.Full(1)
        return place(self, gone)

    monkeypatch.setattr(worker.Worker, "place", busy_once)
    upload(page, picture)
    until(lambda: "busy" in page.said("status"))
    ready(page)
    assert page.said("status").startswith("Done in")
