"""The commands ``serve``, ``swap`` and ``replay`` in processes of their own, with a real network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from acq_isl.errors import ModelError
from acq_isl.stack import Prediction, Slice, ZStack
from acq_isl.storage.prediction_store import load as load_prediction
from acq_isl.storage.prediction_store import stored
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.messages import Wanted
from acq_isl.stream.model_registry import named
from acq_isl.stream.process import EngineProcess
from acq_isl.stream.spool import Spool, SpooledStack
from acq_isl.stream.swap import swap
from doubles import tiny_model as tiny

SERVE = (sys.executable, "-m", "acq_isl", "serve", "--backend", "onnxruntime")


def acq_isl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "acq_isl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def words(text: str) -> str:
    """However wide the terminal is."""
    return " ".join(text.split())


def model(folder: Path, name: str, version: str = "1") -> Path:
    folder.mkdir()
    return Path(
        tiny.write(folder, manifest=tiny.MANIFEST.model_copy(update={"name": name, "version": version}))
    )


def put(client: EngineClient, stack: ZStack) -> None:
    for z, pixels in enumerate(stack.pixels):
        client.put(Slice(stack.info, z, pixels, 1.75e9 + z))


def test_two_models_and_a_swap_while_a_client_is_connected(tmp_path: Path) -> None:
    one, other = model(tmp_path / "one", "tiny"), model(tmp_path / "other", "another")
    newer, wider = model(tmp_path / "newer", "tiny", "2"), tmp_path / "wider"
    wider.mkdir()
    offsets = tuple(2.0 * z for z in tiny.MANIFEST.z_offsets_um)
    tiny.write(wider, manifest=tiny.MANIFEST.model_copy(update={"z_offsets_um": offsets}))
    settings = ClientSettings(wanted=Wanted(models=("tiny", "second"), work="live"))
    with (
        EngineProcess(one, threads=1, command=(*SERVE, "--model", f"second={other}")) as server,
        EngineClient(server.endpoint, spool=Spool(tmp_path / "spool"), settings=settings) as client,
    ):
        put(client, tiny.stack(position="A1"))
        before = {outcome.model: outcome for outcome in client.drain(30)}
        done = acq_isl("swap", server.endpoint, str(newer))
        put(client, tiny.stack(position="A2"))
        after = {outcome.model: outcome for outcome in client.drain(30)}
        refused = acq_isl("swap", server.endpoint, str(tmp_path / "nothing.onnx"), "--name", "tiny")
        with pytest.raises(ModelError, match=r"planes: 5 of 1\.5 um -> 5 of 3 um"):
            swap(server.endpoint, str(wider / "tiny.onnx"))
        put(client, tiny.stack(position="A3"))
        last = {outcome.model: outcome for outcome in client.drain(30)}
        counts = client.counts
    for outcomes, version in ((before, "1"), (after, "2"), (last, "2")):
        assert all(isinstance(one, Prediction) for one in outcomes.values())
        names = {name: one.model_name for name, one in outcomes.items()}
        assert names == {"tiny": f"tiny {version}", "second": "another 1"}
    assert np.array_equal(before["tiny"].mean, after["tiny"].mean), "the same weights under another version"
    assert done.returncode == 0, done.stderr
    assert before["tiny"].model_sha256[:12] in done.stdout and after["tiny"].model_sha256[:12] in done.stdout
    assert refused.returncode == 1
    assert "not replaced" in words(refused.stderr) and "nothing.onnx" in words(refused.stderr)
    assert (counts.predicted, counts.lost, counts.unpredicted, counts.reconnects) == (6, 0, 0, 0)


def test_what_waits_is_predicted_by_the_command(tmp_path: Path) -> None:
    file, run = model(tmp_path / "model", "tiny"), tmp_path / "run"
    stack = tiny.stack()
    times = tuple(1.75e9 + z for z in range(len(stack.pixels)))
    Spool(run / "spool").write(SpooledStack(0, stack.info, (0, 1, 2, 3, 4), times, stack.pixels, "no engine"))
    unknown = acq_isl("replay", str(run))
    assert unknown.returncode == 1 and "does not say which model" in words(unknown.stderr)
    done = acq_isl("replay", str(run), "--model", str(file), "--threads", "1", "--backend", "onnxruntime")
    assert done.returncode == 0, done.stderr
    assert "1 predicted" in words(done.stdout) and "0 left" in words(done.stdout)
    assert Spool(run / "spool").list() == ()
    (name,) = stored(run / "predictions.ome.zarr")
    assert load_prediction(run / "predictions.ome.zarr", name).info == stack.info
    again = acq_isl("replay", str(run))
    assert again.returncode == 0 and "0 stacks wait" in again.stdout


@pytest.mark.parametrize(
    "text, name, file",
    [
        ("demo", "", "demo"),
        ("mine=demo", "mine", "demo"),
        ("a=b.onnx", "a", "b.onnx"),
        ("=b.onnx", "", "=b.onnx"),
        ("a=", "", "a="),
        (r"C:\models\a.onnx", "", r"C:\models\a.onnx"),
    ],
)
def test_a_model_may_have_a_name(text: str, name: str, file: str) -> None:
    assert named(text) == (name, file)


def test_a_file_with_an_equals_sign_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lr=1e-3.onnx"
    path.touch()
    assert named(str(path)) == ("", str(path))
