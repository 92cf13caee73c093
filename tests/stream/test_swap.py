"""A new model takes the old one's place between two stacks, none is lost; or the old one stays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import zmq

from acq_isl.errors import AcqIslError, EngineError, ModelError
from acq_isl.stack import Prediction, ZStack
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.connection import ConnectionSettings
from acq_isl.stream.messages import Swapped, Wanted
from acq_isl.stream.model_registry import ServedModel, changes
from acq_isl.stream.server import EngineServer, ServerSettings
from acq_isl.stream.sockets import ClientKeys, ServerKeys
from acq_isl.stream.spool import Spool
from acq_isl.stream.swap import swap
from doubles import serving as fake

QUICK = ConnectionSettings(beat_s=0.05, silence_s=10.0, reconnect_s=0.02, reconnect_max_s=0.05)


@dataclass
class Shelf:
    """Model files by name; a gate holds up the loading of one."""

    models: dict[str, Callable[[], object]]
    slow: str = ""
    gate: threading.Event = field(default_factory=threading.Event)
    loading: threading.Event = field(default_factory=threading.Event)

    def load(self, name: str) -> ServedModel:
        if name == self.slow:
            self.loading.set()
            if not self.gate.wait(30):
                raise EngineError("nobody opened the gate")
        if name not in self.models:
            raise ModelError(f"{name} is damaged", wanted="a model", got="a cat", fix="export it again")
        engine = self.models[name]()
        return ServedModel(engine, "", engine.sha256, "fake")  # type: ignore[attr-defined, arg-type]


@contextmanager
def served(*engines: object, shelf: Shelf | None = None) -> Iterator[EngineServer]:
    models = [ServedModel(engine, "", engine.sha256, "fake") for engine in engines]  # type: ignore[attr-defined, arg-type]
    settings = ServerSettings(load=None if shelf is None else shelf.load)
    with EngineServer(models, fake.ANY_PORT, settings) as server:
        yield server


@contextmanager
def connected(
    server: EngineServer, folder: Path, any_model: bool = False, **settings: object
) -> Iterator[EngineClient]:
    link = replace(QUICK, any_model=any_model)
    made = replace(ClientSettings(memory_bytes=4 << 20, link=link), **settings)  # type: ignore[arg-type]
    with EngineClient(server.endpoint, spool=Spool(folder), settings=made) as client:
        assert client.wait_connected(20)
        yield client


class Asker(threading.Thread):
    """Asks for a swap and keeps the answer."""

    def __init__(self, endpoint: str, model: str) -> None:
        super().__init__(daemon=True)
        self.answer: Swapped | AcqIslError | None = None
        self._endpoint, self._model = endpoint, model
        self.start()

    def run(self) -> None:
        try:
            self.answer = swap(self._endpoint, self._model, timeout_s=30)
        except AcqIslError as error:
            self.answer = error

    def done(self) -> Swapped:
        self.join(30)
        assert isinstance(self.answer, Swapped), self.answer
        return self.answer


def put(client: EngineClient, *times: int) -> None:
    for time_ in times:
        for z in range(3):
            client.put(fake.slice_of(time_, z))


def test_the_new_model_takes_over_between_two_stacks_and_none_is_lost(tmp_path: Path) -> None:
    old, new = fake.GateEngine(sha256="old"), fake.MeanEngine(sha256="new", factor=2.0)
    shelf = Shelf({"new.onnx": lambda: new}, slow="new.onnx")
    with served(old, shelf=shelf) as server, connected(server, tmp_path) as client:
        put(client, 0)
        assert old.busy.wait(20)
        asker = Asker(server.endpoint, "new.onnx")
        assert shelf.loading.wait(20), "it loads while the old one predicts"
        old.gate.release()
        outcomes = []
        fake.wait_until(lambda: outcomes.extend(client.poll()) or outcomes)
        put(client, 1, 2, 3)  # the old one has begun 1 when the new one is ready
        fake.wait_until(lambda: server.counts.taken == 2)
        shelf.gate.set()
        fake.wait_until(lambda: client.engine is not None and client.engine.model_sha256 == "new")
        old.open()
        done = asker.done()
        put(client, 4)
        outcomes += client.drain(20)
        counts = client.counts
    assert (done.old.model_sha256, done.new.model_sha256, done.changes) == ("old", "new", ())
    by_time = {one.info.key.time: one for one in outcomes}
    assert len(outcomes) == 5 and all(isinstance(one, Prediction) for one in outcomes)
    assert [by_time[n].model_sha256 for n in range(5)] == ["old", "old", "new", "new", "new"]
    for time_, one in by_time.items():
        assert np.all(one.mean == fake.expected(time_, 2.0 if one.model_sha256 == "new" else 1.0))
    assert (counts.predicted, counts.lost, counts.unpredicted, counts.reconnects) == (5, 0, 0, 0)
    assert old.closed.wait(20) and new.closed.is_set(), "the old one after the swap, the new one at the end"


def test_under_a_stream_of_stacks_every_one_is_predicted_once_by_one_of_both(tmp_path: Path) -> None:
    engines = [fake.MeanEngine(sha256=str(n)) for n in range(4)]
    shelf = Shelf({str(n): lambda n=n: engines[n] for n in range(4)})
    with served(engines[0], shelf=shelf) as server, connected(server, tmp_path) as client:
        stacks, outcomes = 0, []
        for n in (1, 2, 3):
            asker = Asker(server.endpoint, str(n))
            while asker.is_alive() and stacks < 25 * n:
                put(client, stacks)
                stacks += 1
                outcomes += client.drain(20) if stacks % 4 == 0 else client.poll()
            asker.done()
        put(client, stacks)
        outcomes += client.drain(20)
        counts = client.counts
    assert all(isinstance(one, Prediction) for one in outcomes)
    assert {one.info.key.time: one.model_sha256 for one in outcomes}[stacks] == "3"
    assert (counts.predicted, counts.lost) == (counts.stacks, 0)
    assert sum(len(engine.asked) for engine in engines) == counts.stacks, "no stack was predicted twice"
    assert all(engine.closed.wait(20) for engine in engines)


def test_a_model_that_cannot_be_loaded_leaves_the_old_one_and_tells_why(tmp_path: Path) -> None:
    old = fake.MeanEngine(sha256="old")
    with served(old, shelf=Shelf({})) as server, connected(server, tmp_path) as client:
        with pytest.raises(ModelError, match=r"not replaced: new.onnx is damaged.*a cat.*export it again"):
            swap(server.endpoint, "new.onnx")
        put(client, 0)
        (outcome,) = client.drain(20)
    assert isinstance(outcome, Prediction) and outcome.model_sha256 == "old"


class Broken(fake.MeanEngine):  # type: ignore[name-defined, misc]
    def predict(self, stack: ZStack) -> Prediction:
        raise EngineError("out of memory")


def test_a_model_that_loads_and_does_not_run_is_not_put_in_place() -> None:
    new = Broken()
    with served(fake.MeanEngine(), shelf=Shelf({"new": lambda: new})) as server:
        with pytest.raises(EngineError, match="not replaced: out of memory"):
            swap(server.endpoint, "new")
        assert new.closed.wait(20)


def test_a_loader_that_crashes_is_an_answer_too() -> None:
    def crash() -> object:
        raise ZeroDivisionError("a bug")

    with (
        served(fake.MeanEngine(), shelf=Shelf({"new": crash})) as server,
        pytest.raises(EngineError, match="ZeroDivisionError: a bug"),
    ):
        swap(server.endpoint, "new")


def test_other_labels_are_refused_while_a_client_relies_on_them(tmp_path: Path) -> None:
    made = []

    def other() -> object:
        made.append(fake.MeanEngine(fake.manifest(labels=("nuclei", "axons")), "new"))
        return made[-1]

    with served(fake.MeanEngine(sha256="old"), shelf=Shelf({"new": other})) as server:
        with connected(server, tmp_path / "one"), connected(server, tmp_path / "two", any_model=True):
            with pytest.raises(ModelError, match=r"1 of the connected clients.*nuclei -> nuclei, axons"):
                swap(server.endpoint, "new")
            assert made[-1].closed.wait(20)
        with connected(server, tmp_path / "three", any_model=True) as client:
            fake.wait_until(lambda: swapped(server, "new"))  # until the other has said good-bye
            assert client.engine is not None
            fake.wait_until(lambda: client.manifest is not None and len(client.manifest.labels) == 2)
            put(client, 0)
            (outcome,) = client.drain(20)
    assert isinstance(outcome, Prediction) and outcome.labels == ("nuclei", "axons")


def swapped(server: EngineServer, model: str) -> bool:
    try:
        return swap(server.endpoint, model).changes == ("labels: nuclei -> nuclei, axons",)
    except ModelError:
        return False


@pytest.mark.parametrize(
    "changed, said",
    [
        ({}, ()),
        ({"version": "2", "trained_on": "more", "halo_px": 8}, ()),
        ({"labels": ("axons",)}, ("labels: nuclei -> axons",)),
        ({"z_offsets_um": (-1.0, 1.0)}, ("planes: 3 of 1 um -> 2 of 2 um",)),
        ({"z_offsets_um": (-1.5, 0.0, 1.5)}, ("planes: 3 of 1 um -> 3 of 1.5 um",)),
        ({"pixel_size_um": 0.6}, ("pixel size: 0.3 um -> 0.6 um",)),
        ({"pixel_size_um": 0.3001}, ()),
        (
            {"modality": "DIC", "polarity": "bright"},
            ("modality: phase contrast -> DIC", "polarity: dark -> bright"),
        ),
    ],
)
def test_what_a_client_would_notice(changed: dict[str, object], said: tuple[str, ...]) -> None:
    assert changes(fake.manifest(), fake.manifest(**changed)) == said


def test_of_several_models_the_one_of_the_new_ones_name_is_replaced(tmp_path: Path) -> None:
    one, two = fake.MeanEngine(fake.manifest("one"), "1"), fake.MeanEngine(fake.manifest("two"), "2")
    shelf = Shelf(
        {
            "better": lambda: fake.MeanEngine(fake.manifest("two"), "3"),
            "third": lambda: fake.MeanEngine(fake.manifest("third"), "4"),
        }
    )
    wanted = Wanted(models=("one", "two"))
    with served(one, two, shelf=shelf) as server, connected(server, tmp_path, wanted=wanted) as client:
        assert swap(server.endpoint, "better").old.model_sha256 == "2"
        with pytest.raises(ModelError, match=r"no model 'third'.*one, two"):
            swap(server.endpoint, "third")
        with pytest.raises(ModelError, match=r"no model 'four'"):
            swap(server.endpoint, "third", "four")
        done = swap(server.endpoint, "third", "one")
        assert (done.new.name, done.new.model_sha256) == ("one", "4"), "a model is known by its place's name"
        put(client, 0)
        hashes = {outcome.model: outcome.model_sha256 for outcome in client.drain(20)}
    assert hashes == {"one": "4", "two": "3"}


def test_one_swap_at_a_time() -> None:
    shelf = Shelf({"new": fake.MeanEngine}, slow="new")
    with served(fake.MeanEngine(), shelf=shelf) as server:
        first = Asker(server.endpoint, "new")
        assert shelf.loading.wait(20)
        with pytest.raises(EngineError, match="another model is being loaded"):
            swap(server.endpoint, "new")
        shelf.gate.set()
        first.done()


def test_a_server_that_ends_while_a_model_loads_closes_that_too() -> None:
    made = fake.MeanEngine()
    shelf = Shelf({"new": lambda: made}, slow="new")
    with served(fake.MeanEngine(), shelf=shelf) as server:
        Asker(server.endpoint, "new")
        assert shelf.loading.wait(20)
        threading.Timer(0.05, shelf.gate.set).start()  # while the server stops
    assert made.closed.wait(20)


def test_a_server_without_a_loader_changes_nothing() -> None:
    with served(fake.MeanEngine()) as server, pytest.raises(EngineError, match="does not change its models"):
        swap(server.endpoint, "new")


def test_nobody_there() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as silent:
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(EngineError, match="no answer from"):
            swap(f"tcp://127.0.0.1:{port}", "new", answer_s=0.1)
    with pytest.raises(EngineError, match="cannot be used"):
        swap("nonsense", "new")


@pytest.mark.skipif(not zmq.has("curve"), reason="this ZMQ was built without CURVE")
def test_from_other_hosts_only_known_keys_may_swap() -> None:
    (public, secret), known, stranger = (zmq.curve_keypair() for _ in range(3))
    settings = ServerSettings(
        keys=ServerKeys(public, secret, (known[0],)),
        load=Shelf({"new": lambda: fake.MeanEngine(sha256="new")}).load,
    )
    with EngineServer([ServedModel(fake.MeanEngine())], "tcp://0.0.0.0:*", settings) as server:
        endpoint = server.endpoint.replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(EngineError, match="no answer from"):
            swap(endpoint, "new", answer_s=0.3)
        with pytest.raises(EngineError, match="no answer from"):
            swap(endpoint, "new", keys=ClientKeys(public, *stranger), answer_s=0.3)
        assert swap(endpoint, "new", keys=ClientKeys(public, *known)).new.model_sha256 == "new"
