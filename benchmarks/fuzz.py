"""Nonsense for every decoder, and the latency of a client in earnest while its engine is fed with it.

    python benchmarks/fuzz.py [TARGET ...] [--runs 350000] [--seconds 20] [--model FILE]

Each decoder runs in a process of its own, on messages and files that were changed: by atheris (libFuzzer),
which looks for new ways through the code, where it is installed, else by random edits. An input may only be
taken, or refused by an `AcqIslError`, within a second; memory must not grow. Then an engine is flooded while
somebody predicts with it: the median latency before, while, and after.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer

_GUIDED = importlib.util.find_spec("atheris") is not None
if _GUIDED and "--only" in sys.argv:
    import atheris

    seen = atheris.instrument_imports(include=["acq_isl"])
else:
    seen = nullcontext()
with seen:
    from acq_isl.errors import AcqIslError
    from acq_isl.experiment.experiment import Experiment
    from acq_isl.manifest import Manifest
    from acq_isl.stack import Prediction, Slice, StackInfo, StackKey
    from acq_isl.stream import messages as wire
    from acq_isl.stream.client import EngineClient
    from acq_isl.stream.codec import decode, encode, prediction_of, result_of, slice_frames, slice_of
    from acq_isl.stream.process import EngineProcess
    from acq_isl.stream.promises import other_models, require_promised
    from acq_isl.stream.sessions import SessionLimits, Sessions
    from acq_isl.stream.spool import Spool, SpooledStack

_SPLIT = b"\x00FRAME\x00"
_SLOW_S = 1.0
_INFO = StackInfo(StackKey(3, "A1", "Phase"), (0.0, 1.5, 3.0), (4, 5), 0.3, 10.0, -20.0, 8.0)
_MANIFEST = Path(__file__).resolve().parents[1] / "tests" / "doubles"


def messages() -> list[list[bytes]]:
    """One of each kind, as frames."""
    offer = wire.Offer(name="a", manifest="{}", model_sha256="ab", engine="fake")
    plane = np.zeros((1, 4, 5), np.float32)
    prediction = Prediction(_INFO, ("nuclei",), plane, plane, "ab", "m", "e")
    pixels = np.arange(20, dtype=np.uint16).reshape(4, 5)
    plain: list[wire.Message] = [
        wire.Hello(session="0f" * 16, attempt=7, ring=wire.MemoryOffer(name="/proc/1/fd/3#ab", nbytes=4096)),
        wire.Welcome(attempt=7, credit=2, models=(offer,), held=(1, 4)),
        wire.Models(models=(offer,)),
        wire.Refused(stack=5, model="a", reason="too few planes", fix="more"),
        wire.Failed(stack=5, reason="no memory"),
        wire.Expired(stack=5),
        wire.Done(stack=5, model="a"),
        wire.Cancel(stack=5),
        wire.Withdraw(stack=5),
        wire.Withdrawn(stack=5),
        wire.Swap(model="m.onnx", name="a"),
        wire.Loading(),
        wire.Swapped(old=offer, new=offer, changes=("labels",)),
        wire.NotSwapped(error="model", reason="no"),
        wire.Beat(sent_s=1.0),
        wire.Alive(sent_s=1.0, server_s=2.0),
        wire.Bye(reason="over"),
    ]
    found = [encode(message) for message in plain]
    found += [
        slice_frames(1, Slice(_INFO, z, pixels, 1.0), wanted=wire.Wanted(models=("a",))) for z in range(3)
    ]
    found += [slice_frames(2, Slice(_INFO, 0, pixels, 1.0), wire.MemoryRef(offset=4096, generation=9))]
    found += [result_of(1, prediction, 1.0)]
    return [[bytes(frame) for frame in frames] for frames in found]


def client_end() -> Callable[[bytes], object]:
    """What an engine sends, on the side of the microscope."""
    offers = (wire.Offer(name="a", manifest=manifest(), model_sha256="ab", engine="fake"),)

    def take(data: bytes) -> None:
        message, buffers = decode(data.split(_SPLIT))
        if isinstance(message, wire.Result):
            require_promised(offers, message)
            prediction_of(message, buffers, _INFO)
        elif isinstance(message, wire.Welcome | wire.Models):
            other_models(offers, message.models)

    return take


def server_end() -> Callable[[bytes], object]:
    """What a client sends, on the side of the engine, up to a stack that is complete."""
    welcome = wire.Welcome(
        attempt=0, credit=2, models=(wire.Offer(name="a", manifest="{}", model_sha256="", engine=""),)
    )
    sessions = Sessions(SessionLimits(credit=2), welcome)
    greeting = wire.Hello(session="0f" * 16, attempt=1)
    sessions.hello(b"us", greeting, 0.0)

    def take(data: bytes) -> None:
        message, buffers = decode(data.split(_SPLIT))
        session = sessions.find(b"us", time.monotonic())
        if isinstance(message, wire.Hello):
            sessions.replace(b"us", message.session)
            sessions.hello(b"us", message, time.monotonic())
        elif session is None:
            sessions.hello(b"us", greeting, time.monotonic())
        elif isinstance(message, wire.SliceSent):
            if message.ring is None:
                slice_of(message, buffers)
            try:
                sessions.take(session, message, buffers, time.monotonic())
            except AcqIslError as error:
                session.fail(message.stack, message.wanted.names, str(error))
        elif isinstance(message, wire.Done):
            session.confirm(message.stack, message.model)
        elif isinstance(message, wire.Cancel | wire.Withdraw):
            session.forget(message.stack)
        elif isinstance(message, wire.Bye):
            sessions.leave(session)

    return take


def manifest() -> str:
    sys.path.insert(0, str(_MANIFEST.parent))
    from doubles import serving

    return serving.manifest().model_dump_json()


def spool_file() -> Callable[[bytes], object]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    path, spool = folder / "one.ome.tif", Spool(folder)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        spool.read(path)

    return read


def spooled() -> bytes:
    pixels = np.zeros((3, 4, 5), np.uint16)
    stack = SpooledStack(1, _INFO, (0, 1, 2), (1.0, 2.0, 3.0), pixels, "no engine", ("",))
    with tempfile.TemporaryDirectory() as folder:
        return Spool(Path(folder)).write(stack).read_bytes()


def page() -> Callable[[bytes], object]:
    from pydantic import ValidationError

    from acq_isl.view.web.app import _REQUEST

    def take(data: bytes) -> None:
        try:
            _REQUEST.validate_json(data)
        except ValidationError as error:  # as the page's own end does
            raise AcqIslError(str(error)[:100]) from error

    return take


def _read_manifest(data: bytes) -> None:
    Manifest.from_json(data.decode("utf-8", "replace"))


def _read_experiment(data: bytes) -> None:
    Experiment.from_text(data.decode("utf-8", "replace"))


_YAML = b"""name: a
overview: {z_plan: {range: 6, step: 1.5}, channels: [{config: Phase, exposure: 5}]}
choose: {k: 2, measurement: {kind: object_count, label: nuclei, above: 0.2}}
limits: {x_um: [-1, 1], exposure_ms: 100}
engine: {kind: local, threads: 1}
"""
_WIRE = [_SPLIT.join(frames) for frames in messages()]
_PAGE = [
    b'{"type": "HELLO", "token": ""}',
    b'{"type": "SEEN", "frames": 12}',
    b'{"type": "ORDER", "id": 1, "order": {"kind": "pause"}}',
    b'{"type": "ORDER", "id": 2, "order": {"kind": "go_to", "x_um": 1.5, "y_um": -2.0}}',
]
TARGETS: dict[str, tuple[Callable[[], Callable[[bytes], object]], Callable[[], list[bytes]]]] = {
    "wire, microscope's end": (client_end, lambda: _WIRE),
    "wire, engine's end": (server_end, lambda: _WIRE),
    "manifest": (lambda: _read_manifest, lambda: [manifest().encode()]),
    "experiment file": (lambda: _read_experiment, lambda: [_YAML]),
    "spooled stack": (spool_file, lambda: [spooled()]),
    "command of the page": (page, lambda: _PAGE),
}  # fmt: skip
_SHARE = {"experiment file": 0.02, "spooled stack": 0.1}
"""Of all runs: these take a thousand times as long as a message."""


class Watched:
    """A decoder whose inputs are counted; whatever is neither taken nor refused in words is told."""

    def __init__(self, decoder: Callable[[bytes], object]) -> None:
        self._decoder, self._process = decoder, psutil.Process()
        self.runs = self.taken = 0
        self.slowest_s = 0.0
        self.first_mib = 0.0
        self.wrong: dict[str, bytes] = {}

    def __call__(self, data: bytes) -> None:
        began_s = time.perf_counter()
        try:
            self._decoder(data)
            self.taken += 1
        except AcqIslError:
            pass
        except Exception as error:  # noqa: BLE001  what is looked for
            self.wrong.setdefault(f"{type(error).__name__}: {str(error)[:100]}", data)
        self.slowest_s = max(self.slowest_s, time.perf_counter() - began_s)
        self.runs += 1
        if self.runs == 2000:
            self.first_mib = self.mib

    @property
    def mib(self) -> float:
        return self._process.memory_info().rss / 2**20

    def found(self) -> dict[str, object]:
        grown = self.mib - self.first_mib if self.first_mib else 0.0
        wrong = {what: data.hex()[:200] for what, data in self.wrong.items()}
        return {
            "runs": self.runs,
            "taken": self.taken,
            "slowest_s": self.slowest_s,
            "grown": grown,
            "wrong": wrong,
        }


def edited(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """An input with a few things changed: bytes, pieces, numbers, what another has."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        at = rng.randrange(len(changed) + 1)
        to = min(at + rng.randrange(1, 9), len(changed))
        match rng.randrange(6):
            case 0:
                changed[at:to] = rng.randbytes(to - at)
            case 1:
                del changed[at:to]
            case 2:
                changed[at:at] = changed[at : at + rng.randrange(60)] * rng.randrange(1, 4)
            case 3:
                changed[at:to] = rng.choice(_TOKENS)
            case 4:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                changed[at:to] = other[start : start + rng.randrange(80)]
            case _:
                digits = [place for place, byte in enumerate(changed) if 48 <= byte <= 57]
                if digits:
                    place = rng.choice(digits)
                    changed[place : place + 1] = rng.choice(_TOKENS)
    return bytes(changed)


_TOKENS = [
    b"-1", b"0", b"1e999", b"NaN", b"9007199254740993", b"99999999999999999999", b"null", b"true", b"[]",
    b"{}", b'"', b"\\u0000", b"\\ud800", b"\xff\xfe", b"[[[[[[[[", b'{"a":' * 8, _SPLIT, b"RESULT",
    b"SLICE", b"HELLO", b"0.3e-300", b"1" * 400, b"&a *a", b"<<: *a", b"!!python/object:os.system",
    b"\t", b": ", b"- ",
]  # fmt: skip


def one(target: str, runs: int, seed: int) -> None:
    """Fuzz one decoder here, and print what was found as JSON."""
    make, corpus = TARGETS[target]
    watched, inputs = Watched(make()), corpus()
    if not _GUIDED:
        rng = random.Random(seed)
        for _ in range(runs):
            watched(edited(rng.choice(inputs), rng, inputs))
        sys.stdout.write(json.dumps(watched.found()) + "\n")
        return
    rng = random.Random(seed)

    @atheris.instrument_func
    def run(data: bytes) -> None:
        # libFuzzer's edits of whole inputs, and ours, which know what a number and a frame is.
        watched(data if watched.runs % 2 else edited(data or rng.choice(inputs), rng, inputs))
        if watched.runs >= runs:
            sys.stdout.write(json.dumps(watched.found()) + "\n")
            sys.stdout.flush()
            os._exit(0)

    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(inputs):
            (Path(folder) / str(number)).write_bytes(data)
        words = [
            sys.argv[0],
            folder,
            f"-seed={seed + 1}",
            "-max_len=65536",
            "-rss_limit_mb=4096",
            "-verbosity=0",
        ]
        atheris.Setup(words, run)
        atheris.Fuzz()


@contextmanager
def flooding(address: str) -> Iterator[None]:
    """Somebody sends nonsense, from a process of its own."""
    code = f"import hostile; hostile.flood({address!r}, 1e9)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent) as process:
        try:
            yield
        finally:
            process.kill()


def latencies(client: EngineClient, info: StackInfo, name: str, seconds: float) -> list[float]:
    """Milliseconds from the last slice to the prediction, one stack after the other."""
    rng, found = np.random.default_rng(0), []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        key = StackKey(len(found), name, "Phase")
        planes = (20000 + 2000 * rng.standard_normal((info.planes, *info.shape))).astype(np.uint16)
        for z in range(info.planes):
            client.put(Slice(replace(info, key=key), z, planes[z], time.time()))
        began_s = time.perf_counter()
        while not client.poll():
            client.wait(0.5)
        found.append((time.perf_counter() - began_s) * 1e3)
    return found


def flood_table(model: str, seconds: float) -> str:
    """The latency of a client in earnest, and the slots that are free again."""
    from acq_isl.engines.model_file import read_model

    manifest = read_model(model).info.manifest
    info = StackInfo(StackKey(0, "", ""), manifest.z_offsets_um, (128, 128), manifest.pixel_size_um)
    with ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        engine = opened.enter_context(EngineProcess(model, threads=1, startup_timeout_s=600))
        client = opened.enter_context(EngineClient(engine.endpoint, spool=Spool(Path(folder))))
        client.wait_connected(60)
        latencies(client, info, "warm", 2)
        mib = psutil.Process(engine.pid).memory_info().rss / 2**20
        before = latencies(client, info, "before", seconds)
        with flooding(engine.endpoint):
            time.sleep(1)
            during = latencies(client, info, "during", seconds)
        after = latencies(client, info, "after", seconds)
        grown = psutil.Process(engine.pid).memory_info().rss / 2**20 - mib
        lost = client.counts.lost
    rows = [("before", before), ("while flooded", during), ("after", after)]
    middle = statistics.median(before)
    lines = []
    for name, ms in rows:
        p50 = statistics.median(ms)
        lines.append(f"| {name} | {len(ms)} | {p50:.0f} | {p50 / middle:.2f} |")
    head = "| | stacks | p50, ms | ratio |\n|---|---|---|---|\n"
    return f"{head}{chr(10).join(lines)}\nthe engine grew by {grown:.0f} MiB, {lost} slices were lost\n"


def main(
    targets: Annotated[list[str] | None, typer.Argument()] = None,
    runs: int = 350_000,
    seconds: float = 20.0,
    model: str = "demo",
    only: Annotated[str, typer.Option(hidden=True)] = "",
    seed: int = 0,
) -> None:
    if only:
        one(only, runs, seed)
        return
    how = "by atheris and edits" if _GUIDED else "by edits"
    titles = (f"decoder, {how}", "inputs", "taken", "slowest, s", "grown, MiB", "untyped")
    sys.stdout.write(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|\n")
    for target in targets or TARGETS:
        count = int(runs * _SHARE.get(target, 1))
        command = [sys.executable, __file__, "--only", target, "--runs", str(count), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stdout.write(f"| {target} | **ended**: {done.stderr[-300:]!r} |\n")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        cells = [target, found["runs"], found["taken"], f"{found['slowest_s']:.2f}", f"{found['grown']:.1f}"]
        wrong = "; ".join(f"{what} ({data})" for what, data in found["wrong"].items()) or "none"
        sys.stdout.write(f"| {' | '.join(map(str, cells))} | {wrong} |\n")
        sys.stdout.flush()
    if seconds:
        sys.stdout.write("\n" + flood_table(model, seconds))


if __name__ == "__main__":
    typer.run(main)
