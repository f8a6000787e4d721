"""Weights & Biases beside TensorBoard: off line, and what is said where it cannot be had."""

import json
import struct
import sys
import time
import types

import pytest

from lljax.errors import InputError, Stopped
from lljax.training import logs
from lljax.training.loop import fit
from tests import toy


def config(**changes):
    """The toy's first phase alone."""
    made = toy.get_config()
    made.phases, made.phase.first.steps = ("first",), 2
    made.loss.match.enabled = made.loss.score.enabled = False
    made.log.samples = 1
    made.update_from_flattened_dict(changes)
    return made


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """The package, with its files in the test's folder and no way to the network."""
    module = pytest.importorskip(
        "wandb", reason="wandb is not installed: pip install 'lljax[wandb]'")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield module
    module.teardown()


def records(path):
    """The records of a run's file: blocks of 32 KiB, a record in one or several parts."""
    from wandb.proto import wandb_internal_pb2
    data, at, whole = path.read_bytes(), 7, b""
    while at < len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole, at = whole + data[at + 7:at + 7 + size], at + 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record.WhichOneof("record_type"), record


def offline(workdir):
    """Every run below a workdir: (what it is, rows by step, exit code), in order of time."""
    # wandb's service writes the files in a process of its own, and may end after the run does.
    deadline = time.monotonic() + 60
    while True:
        found = [parsed(path) for path in sorted(
            (workdir / "wandb").glob("offline-run-*/*.wandb"))]
        if found and all(code is not None for *_, code in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def parsed(path):
    rows, run, code = {}, None, None
    for kind, record in records(path):
        if kind == "run":
            run = record.run
        elif kind == "exit":
            code = record.exit.exit_code
        elif kind == "history":
            row = {".".join(item.nested_key) or item.key: json.loads(item.value_json)
                   for item in record.history.item}
            rows[row["_step"]] = row
    return run, rows, code


def test_a_run_is_logged_offline_and_resumed(wandb, tmp_path):
    workdir = tmp_path / "run"
    flags = {"log.wandb": "offline", "log.group": "sizes", "log.project": "dark"}
    fit(config(**flags), str(workdir))
    fit(config(**flags, **{"phase.first.steps": 3}), str(workdir))
    (first, rows, code), (second, more, _) = offline(workdir)
    assert (first.display_name, first.project, first.run_group) == ("run", "dark", "sizes")
    assert code == 0 and first.run_id == second.run_id  # one run, in two parts
    said = {item.key: json.loads(item.value_json) for item in first.config.update}
    assert said["seed"] == 0 and said["phase"]["first"]["steps"] == 2
    written = {row["step"]: row for row in map(json.loads, (workdir / "metrics.jsonl").open())}
    assert sorted(rows) == [1, 2] and sorted(more) == [3]
    for step, row in {**rows, **more}.items():
        numbers = {key: value for key, value in written[step].items()
                   if key != "step" and not isinstance(value, str)}
        assert {"loss/l1", "lr/base", "images_per_s"} <= numbers.keys()
        assert {key: row[key] for key in numbers} == pytest.approx(numbers)
    assert rows[2]["samples._type"] == "image-file"
    assert list(workdir.glob("wandb/*/files/" + rows[2]["samples.path"]))
    assert list(workdir.glob("events.out.tfevents.*"))  # TensorBoard stays


def test_runs_may_be_open_at_once_and_end_as_they_do(wandb, tmp_path):
    made = config(**{"log.wandb": "offline"})
    with pytest.raises(Stopped), logs.Log(str(tmp_path / "a"), made, 0) as a:
        with logs.Log(str(tmp_path / "b"), made, 0) as b:
            a.scalars({"step": 1, "loss/x": 1.0})
            b.scalars({"step": 1, "loss/x": 2.0})
        raise Stopped("interrupted", 75)
    (_, rows_a, code_a), (_, rows_b, code_b) = *offline(tmp_path / "a"), *offline(tmp_path / "b")
    assert (rows_a[1]["loss/x"], rows_b[1]["loss/x"]) == (1, 2) and (code_a, code_b) == (75, 0)


def test_off_means_that_nothing_of_it_is_imported_or_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    made = config()
    logs.check(made)
    with logs.Log(str(tmp_path / "run"), made, 0) as log:
        log.scalars({"step": 1, "loss/x": 1.0})
    assert not list((tmp_path / "run").glob("wandb*"))


@pytest.mark.parametrize("module", [None, types.ModuleType("wandb")], ids=["absent", "a folder"])
def test_without_the_package_it_is_one_line_before_anything_is_written(
        tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(InputError, match=r"pip install 'lljax\[wandb\]'") as caught:
        fit(config(**{"log.wandb": "online"}), str(tmp_path / "run"))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_an_unknown_mode_is_one_line(tmp_path):
    with pytest.raises(InputError, match='Did you mean "offline"'):
        fit(config(**{"log.wandb": "ofline"}), str(tmp_path / "run"))


def test_a_service_that_cannot_be_used_is_one_line(wandb, tmp_path, monkeypatch):
    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(InputError, match="cannot be used: No API key.*take offline") as caught:
        logs.Log(str(tmp_path / "run"), config(**{"log.wandb": "online"}), 0)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.json").exists()
