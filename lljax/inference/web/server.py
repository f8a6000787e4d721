"""`lljax serve`: a page to enhance pictures in a browser, and the HTTP API behind it.

    GET  /             the page
    POST /api/enhance  a picture in, the enhanced one out, in its format
    GET  /api/models   names, licences, maps; the limits
    GET  /api/health   whether the server works, and how busy it is

An error is a status and {"error": one line}. Pictures stay in memory: nothing is written to a disk
and nothing is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import re
import signal
import socket
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import IO, Any

import flask
import waitress.server
from PIL import Image
from werkzeug import exceptions

import lljax
from lljax import errors, images, parallel, weights
from lljax.errors import InputError
from lljax.inference import enhancer as enhancer_lib
from lljax.inference.web import uploads
from lljax.inference.web.worker import Ended, Full, Gone, Late, Worker

_FIELDS = ("file", "model", "strength", "maps", "format")
_PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"),
         "/page.js": ("page.js", "text/javascript"), "/icon.svg": ("icon.svg", "image/svg+xml")}
_ENVELOPE = 64 * 1024  # bytes of a form beside the picture
_TOGETHER = 8  # uploads of the largest size that may lie in memory at one time
_DECODED = 2  # pictures of the largest size that may be decoded at one time
_SPARE_THREADS = 8  # that answer while all places are taken: the page, refusals
_HEADERS = {
    "Content-Security-Policy":
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
      bytes: most of one picture's file.
      pixels: most of one picture.
      queue: pictures in hand at one time, waiting and running; more are refused with 503.
      timeout: seconds that a picture may take, waiting included.
    """

    bytes: int = 64_000_000
    pixels: int = 50_000_000
    queue: int = 32
    timeout: float = 300.0


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that the server offers.

    Attributes:
      enhancer: what runs it.
      licence: of its weights, if known.
      maps: names of the pictures drawn of its maps.
    """

    enhancer: enhancer_lib.Enhancer
    licence: str | None
    maps: tuple[str, ...]


class _Refused(Exception):
    """An answer other than a picture.

    Attributes:
      status: HTTP status.
      headers: additional ones.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class _Request(flask.Request):
    """A request whose files stay in memory."""

    def _get_file_stream(self, total_content_length, content_type, filename=None,
                         content_length=None):
        return io.BytesIO()  # by default a large file goes to a disk


def load(sources: Sequence[str], seed: int = 0) -> dict[str, Model]:
    """Loads the models that a server offers.

    Args:
      sources: names of shipped weights, workdirs, weights files; none = all shipped weights.
      seed: as in `Enhancer`.

    Returns:
      Name -> model; a workdir or a file goes by its last part, without a suffix.

    Raises:
      InputError: one cannot be loaded, two go by one name, or there are none.
    """
    shipped = weights.shipped()
    models: dict[str, Model] = {}
    for source in dict.fromkeys(sources or shipped):
        name = os.path.basename(os.path.normpath(source)).removesuffix(".safetensors")
        if name in models:
            raise InputError(f'two models go by the name "{name}"; rename one file or folder')
        enhancer = enhancer_lib.load(source, seed)
        file = shipped.get(source, source)
        licence = None if os.path.isdir(file) else weights.describe(file)[1].get("licence")
        models[name] = Model(enhancer, licence, tuple(enhancer.drawn()))
    if not models:
        raise InputError("no weights come with this version of lljax: give --model a workdir of a "
                         "training or a .safetensors file (see `lljax convert`)")
    return models


def create(models: Mapping[str, Model], limits: Limits) -> tuple[flask.Flask, Worker]:
    """The application, for any WSGI server with threads.

    Args:
      models: name -> model; the first is the default.
      limits: what it takes on.

    Returns:
      (application, its worker): one process must have one of each; close the worker at the end.
    """
    worker = Worker({name: model.enhancer for name, model in models.items()}, limits.queue,
                    _DECODED * limits.pixels, limits.timeout)
    app = flask.Flask(__name__, static_folder=None)
    app.request_class = _Request
    app.config["MAX_CONTENT_LENGTH"] = limits.bytes + _ENVELOPE
    started = time.monotonic()

    @app.before_request
    def only_our_page():
        # Any page that the user visits could send pictures here, and keep the machine busy.
        if flask.request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
            if flask.request.method not in ("GET", "HEAD"):
                raise _Refused(403, "this server answers its own page and programs, not the "
                                    "pages of other sites")

    @app.after_request
    def secure(response):
        response.headers.update(_HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.errorhandler(_Refused)
    def refused(error):
        return {"error": str(error)}, error.status, error.headers

    @app.errorhandler(exceptions.HTTPException)
    def failed(error):
        if error.code == 413:
            error.description = _too_many_bytes(limits)
        return {"error": " ".join((error.description or error.name).split())}, error.code

    @app.errorhandler(Exception)
    def broken(error):
        app.logger.error("%s %s", flask.request.method, flask.request.path, exc_info=error)
        return {"error": f"{type(error).__name__} in the server; its log says more"}, 500

    for path, (name, kind) in _PAGE.items():
        app.add_url_rule(path, name, _page(app, name, kind))

    @app.get("/api/health")
    def health():
        return ({"status": "ok" if worker.alive else "the model's thread has ended",
                 "version": lljax.__version__, "seconds": round(time.monotonic() - started),
                 "pictures": worker.inside, "queue": limits.queue},
                200 if worker.alive else 500)

    @app.get("/api/models")
    def describe():
        return {"default": next(iter(models)), "formats": sorted(images.READABLE),
                "models": [{"name": name, "method": model.enhancer.method.config.method,
                            "licence": model.licence, "maps": model.maps}
                           for name, model in models.items()],
                "limits": dataclasses.asdict(limits)}

    @app.post("/api/enhance")
    def enhance():
        gone = flask.request.environ.get("waitress.client_disconnected", lambda: False)
        try:
            # Before the form is read, which copies the picture.
            with worker.place(gone) as ticket:
                return _enhance(flask.request, ticket, models, limits)
        except Full as error:
            raise _Refused(503, f"the server is busy; try again in {error.seconds} s",
                           {"Retry-After": str(error.seconds)}) from None
        except Late:
            raise _Refused(504, f"not done within {limits.timeout:g} s; send a smaller picture, or "
                                "try again when the server is less busy") from None
        except Ended:
            raise _Refused(503, "the server is ending") from None
        except Gone:
            raise _Refused(499, "the client has gone") from None
        except InputError as error:
            raise _Refused(400, str(error)) from error

    return app, worker


def open_server(app: flask.Flask, limits: Limits, host: str, port: int) -> Any:
    """A waitress server that listens: `run` serves, `close` ends it.

    Args:
      app: of `create`.
      limits: the same as the application's.
      host: name or address to listen at.
      port: 0 takes a free one; see the server's `effective_port`.

    Raises:
      InputError: nothing can listen there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # elsewhere it lets two programs share a port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise InputError(f"cannot listen at {host}:{port} ({error.strerror}); choose another "
                         "--port or --host") from error
    # A picture whose result goes out needs its thread no more: outbuf_high_watermark.
    server = waitress.create_server(
        app, sockets=[sock], threads=limits.queue + _SPARE_THREADS, ident="lljax",
        channel_request_lookahead=1,  # without it nobody sees that a client has gone
        connection_limit=2 * limits.queue + 100, max_request_body_size=2**62,
        outbuf_overflow=2**62, outbuf_high_watermark=2**62)
    server.channel_class = uploads.channel_class(
        uploads.Room(limits.bytes + _ENVELOPE, _TOGETHER * (limits.bytes + _ENVELOPE)))
    # It warns of each request that waits for a thread, and tells of each client that goes.
    for name in ("waitress.queue", "waitress"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return server


def serve(sources: Sequence[str], host: str, port: int, limits: Limits) -> None:
    """Serves until the process is told to end (Ctrl-C, SIGTERM); for the main thread.

    Args:
      sources: as `load`.
      host: as `open_server`.
      port: the same.
      limits: what the server takes on.

    Raises:
      InputError: as `load` and `open_server`.
    """
    parallel.keep_programs()
    models = load(sources)
    app, worker = create(models, limits)
    server = open_server(app, limits, host, port)
    where = f"[{host}]" if ":" in host else host
    print(f"http://{where}:{server.effective_port}  models: {', '.join(models)}; Ctrl-C ends it",
          flush=True)
    if not re.match(r"(127\.|localhost$|::1$)", host):
        print("note: others can use it: there is no password and no encryption", flush=True)

    def end(*_):
        worker.close(0)  # first: waitress gives the threads that wait for it a few seconds
        sys.exit(0)

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, end)
    try:
        server.run()
    finally:
        worker.close()


def _page(app: flask.Flask, name: str, kind: str):
    with app.open_resource(name) as file:
        content = file.read()

    def view():
        return flask.Response(content, mimetype=kind, headers={"Cache-Control": "no-cache"})

    return view


def _enhance(request: flask.Request, ticket, models: Mapping[str, Model],
             limits: Limits) -> flask.Response:
    """The answer to a picture."""
    file, name, fields = _upload(request, limits)
    model = fields.get("model") or next(iter(models))
    if model not in models:
        raise errors.unknown("model", model, models)
    strength = _number(fields.get("strength") or "1")
    maps = _flag("maps", fields.get("maps") or "0")
    if maps and not models[model].maps:
        raise InputError(f"maps: the method of {model} has none that can be drawn")
    wanted = _format(fields.get("format"))
    pixels = _measure(file, name, limits.pixels)
    ticket.make_room(limits.pixels if pixels is None else pixels)
    try:
        picture = images.read(file, name, max_pixels=limits.pixels)
    except InputError as error:
        raise _Refused(415 if pixels is None else 400, str(error)) from error
    ticket.check()
    enhanced, drawings = ticket.run(model, picture.pixels, strength, maps)
    picture = dataclasses.replace(picture, pixels=enhanced)
    data, form = _encoded(picture, wanted)
    name = _named(name, form)
    if not maps:
        return _send(data, name, Image.MIME[form])
    stem = os.path.splitext(name)[0]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:  # stored: pictures do not shrink
        out.writestr(zipfile.ZipInfo(name), data)
        for key, drawn in drawings.items():
            out.writestr(zipfile.ZipInfo(f"{stem}_{key}.png"),
                         images.encode(images.drawing(drawn), "PNG"))
    return _send(archive.getvalue(), f"{stem}.zip", "application/zip")


def _upload(request: flask.Request, limits: Limits) -> tuple[IO[bytes], str, Mapping[str, str]]:
    """(file, its name, fields) of a form, or of a body that is the picture itself."""
    dropped = getattr(request.environ["wsgi.input"], "dropped", "")
    if dropped == "crowded":
        raise _Refused(503, "too much is being sent at once; try again in 5 s",
                       {"Retry-After": "5"})
    if dropped or (request.content_length or 0) > limits.bytes + _ENVELOPE:
        raise _Refused(413, _too_many_bytes(limits))
    fields = dict(request.args)
    if request.mimetype == "multipart/form-data":
        fields |= request.form
        sent = request.files.getlist("file")
        for key in request.files:
            if key != "file":
                raise errors.unknown("field", key, _FIELDS)
        if len(sent) != 1:
            raise InputError(f"{len(sent)} pictures in the form; send one, as its field \"file\"")
        file, name = sent[0].stream, sent[0].filename
    else:
        file, name = io.BytesIO(request.get_data(parse_form_data=False)), None
    for key in fields:
        if key not in _FIELDS[1:]:
            raise errors.unknown("field", key, _FIELDS)
    name = "".join(c for c in re.split(r"[/\\]", name or "")[-1] if c.isprintable()) or "picture"
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > limits.bytes:
        raise _Refused(413, _too_many_bytes(limits))
    if size == 0:
        raise InputError(f"{name}: the file is empty")
    return file, name, fields


def _too_many_bytes(limits: Limits) -> str:
    return f"more than {limits.bytes:,} bytes; cut or shrink the picture first"


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError(f"strength {text}: give a number from 0 to 1")
    return value


def _flag(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise InputError(f"{name} {text}: give 0 or 1")
    return text == "1"


def _format(name: str | None) -> str | None:
    known = {suffix[1:]: form for suffix, form in images.FORMATS.items()}
    if name and name.lower() not in known:
        raise errors.unknown("format", name, known)
    return known[name.lower()] if name else None


def _measure(file: IO[bytes], name: str, most: int) -> int | None:
    """Number of pixels, by the header alone: decoding waits until there is room.

    Returns:
      `most` where the header does not tell; None for what Pillow does not know.
    """
    try:
        with Image.open(file, formats=sorted(set(images.FORMATS.values()))) as im:
            width, height = im.size
    except Image.UnidentifiedImageError:
        return None
    except Image.DecompressionBombError:
        raise _Refused(413, _too_many_pixels(name, most)) from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error):
        return most  # reading it says what is wrong
    finally:
        file.seek(0)
    suffix = os.path.splitext(name)[1].lower()
    if suffix and suffix not in images.FORMATS:
        return most  # a camera's raw file: its header is that of a TIFF with a small preview
    if width * height > most:
        raise _Refused(413, f"{_too_many_pixels(name, most)} (it is {width} x {height})")
    return width * height


def _too_many_pixels(name: str, most: int) -> str:
    return f"{name}: more than {most:,} pixels; cut or shrink it first"


def _encoded(picture: images.Picture, wanted: str | None) -> tuple[bytes, str]:
    """(file, format) of a picture: the format asked for, else its own, else PNG."""
    if wanted is not None:
        return images.encode(picture, wanted), wanted
    if picture.format in images.FORMATS.values():
        with contextlib.suppress(InputError):  # it can be read but not written: PNG can
            return images.encode(picture, picture.format), picture.format
    return images.encode(picture, "PNG"), "PNG"


def _named(name: str, form: str) -> str:
    """The picture's name, with another suffix if its own is of another format."""
    stem, suffix = os.path.splitext(name)
    if images.FORMATS.get(suffix.lower()) == form:
        return name
    return stem + next(suffix for suffix, known in images.FORMATS.items() if known == form)


def _send(data: bytes, name: str, kind: str) -> flask.Response:
    return flask.send_file(io.BytesIO(data), kind, as_attachment=True, download_name=name,
                           conditional=False, etag=False)
