"""Several models and classes of work over real sockets: who is predicted when, by whom, and who is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acq_isl.errors import EngineError, ModelError, StackRefused
from acq_isl.stack import Outcome, Prediction, Refusal, StackInfo, Unpredicted, ZStack
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.connection import ConnectionSettings
from acq_isl.stream.messages import Wanted
from acq_isl.stream.model_registry import ServedModel
from acq_isl.stream.server import EngineServer, ServerSettings
from acq_isl.stream.sessions import SessionLimits
from acq_isl.stream.spool import Spool
from doubles import serving as fake

QUICK = ConnectionSettings(beat_s=0.05, silence_s=10.0, reconnect_s=0.02, reconnect_max_s=0.05)
LIVE = Wanted(work="live")


@contextmanager
def served(*engines: object, names: tuple[str, ...] = (), credit: int = 2) -> Iterator[EngineServer]:
    models = [
        ServedModel(engine, name, engine.sha256, "fake")  # type: ignore[attr-defined, arg-type]
        for engine, name in zip(engines, names or ("",) * len(engines), strict=True)
    ]
    with EngineServer(models, fake.ANY_PORT, ServerSettings(SessionLimits(credit=credit))) as server:
        yield server


@contextmanager
def connected(server: EngineServer, folder: Path, **settings: object) -> Iterator[EngineClient]:
    made = replace(ClientSettings(memory_bytes=4 << 20, link=QUICK), **settings)  # type: ignore[arg-type]
    with EngineClient(server.endpoint, spool=Spool(folder), settings=made) as client:
        assert client.wait_connected(20)
        yield client


def put(client: EngineClient, *times: int, planes: int = 3) -> None:
    for time_ in times:
        for z in range(planes):
            client.put(fake.slice_of(time_, z))


def by_model(outcomes: list[Outcome]) -> dict[tuple[int, str], Outcome]:
    """By time and model; no pair may come twice."""
    found = {(one.info.key.time, one.model): one for one in outcomes}
    assert len(found) == len(outcomes), "two outcomes of one stack and model"
    return found


@pytest.mark.parametrize("share_memory", [True, False])
def test_one_stack_is_sent_once_and_predicted_by_several_models(tmp_path: Path, share_memory: bool) -> None:
    one, two = fake.MeanEngine(sha256="11"), fake.MeanEngine(fake.manifest(labels=("a", "b")), "22", 2.0)
    wanted = Wanted(models=("two", "one"))
    with (
        served(one, two, names=("one", "two")) as server,
        connected(server, tmp_path, wanted=wanted, share_memory=share_memory) as client,
    ):
        assert client.engine is not None
        assert [offer.name for offer in client.engine.models] == ["one", "two"]
        put(client, 0, 1, 2)
        found = by_model(client.drain(20))
        counts = client.counts
    assert set(found) == {(time_, model) for time_ in range(3) for model in ("one", "two")}
    for (time_, model), outcome in found.items():
        assert isinstance(outcome, Prediction)
        assert outcome.model_sha256 == {"one": "11", "two": "22"}[model]
        assert outcome.labels == {"one": ("nuclei",), "two": ("a", "b")}[model]
        assert np.all(outcome.mean == fake.expected(time_, {"one": 1.0, "two": 2.0}[model]))
    assert (counts.sent, counts.stacks, counts.predicted) == (9, 3, 6), "every slice travelled once"
    assert (counts.spooled, counts.unpredicted, counts.lost) == (0, 0, 0)


def test_who_names_no_model_takes_the_first(tmp_path: Path) -> None:
    one, two = fake.MeanEngine(sha256="11"), fake.MeanEngine(sha256="22")
    with served(one, two, names=("one", "two")) as server, connected(server, tmp_path) as client:
        put(client, 0)
        (outcome,) = client.drain(20)
    assert isinstance(outcome, Prediction)
    assert (outcome.model, outcome.model_sha256, two.asked) == ("", "11", [])


def test_models_by_channel(tmp_path: Path) -> None:
    def by_channel(info: StackInfo) -> Wanted:
        return Wanted(models=(info.key.channel,))

    one, two = fake.MeanEngine(), fake.MeanEngine()
    with (
        served(one, two, names=("Phase", "DIC")) as server,
        connected(server, tmp_path, wanted=by_channel) as client,
    ):
        for z in range(3):
            client.put(fake.slice_of(4, z, "Phase"))
            client.put(fake.slice_of(5, z, "DIC"))
        found = by_model(client.drain(20))
    assert set(found) == {(4, "Phase"), (5, "DIC")}
    assert (one.asked, two.asked) == ([4], [5])


def test_a_function_that_fails_loses_no_slice(tmp_path: Path) -> None:
    def broken(info: StackInfo) -> Wanted:
        raise KeyError(info.key.channel)

    with served(fake.MeanEngine()) as server, connected(server, tmp_path, wanted=broken) as client:
        put(client, 0)
        assert [type(outcome) for outcome in client.drain(20)] == [Prediction]


def test_a_model_that_is_not_there_is_named_and_the_stack_kept_for_it(tmp_path: Path) -> None:
    engine = fake.MeanEngine()
    wanted = Wanted(models=("here", "nowhere"))
    with served(engine, names=("here",)) as server, connected(server, tmp_path, wanted=wanted) as client:
        put(client, 0)
        found = by_model(client.drain(20))
    assert isinstance(found[0, "here"], Prediction)
    missing = found[0, "nowhere"]
    assert isinstance(missing, Unpredicted)
    assert "no model 'nowhere'" in missing.reason and "wanted: here" in missing.reason
    spooled = Spool(tmp_path).read(Path(missing.where))
    assert (spooled.complete, spooled.models) == (True, ("nowhere",))


class Refuses(fake.MeanEngine):  # type: ignore[name-defined, misc]
    def predict(self, stack: ZStack) -> Prediction:
        raise StackRefused("not my kind", fix="another kind")


class Fails(fake.MeanEngine):  # type: ignore[name-defined, misc]
    def predict(self, stack: ZStack) -> Prediction:
        raise EngineError("out of order")


def test_one_model_may_refuse_another_fail_and_the_third_predicts(tmp_path: Path) -> None:
    wanted = Wanted(models=("fails", "refuses", "predicts"))
    with (
        served(fake.MeanEngine(), Fails(), Refuses(), names=("predicts", "fails", "refuses")) as server,
        connected(server, tmp_path, wanted=wanted) as client,
    ):
        put(client, 0, 1)
        found = by_model(client.drain(20))
        counts = client.counts
    kinds = {"predicts": Prediction, "refuses": Refusal, "fails": Unpredicted}
    assert {key: type(one) for key, one in found.items()} == {
        (time_, name): kind for time_ in (0, 1) for name, kind in kinds.items()
    }
    assert (counts.predicted, counts.refused, counts.failed, counts.unpredicted) == (2, 2, 2, 2)
    assert [Spool(tmp_path).read(path).models for path in Spool(tmp_path).list()] == [("fails",)] * 2


def test_names_of_models_must_differ() -> None:
    first, second = fake.MeanEngine(), fake.MeanEngine()
    with pytest.raises(ModelError, match="mean, mean"):
        EngineServer([ServedModel(first), ServedModel(second)], fake.ANY_PORT)
    with pytest.raises(ModelError, match="no model"):
        EngineServer([], fake.ANY_PORT)


def test_engines_are_closed_with_the_server() -> None:
    engines = [fake.MeanEngine(), fake.MeanEngine(fake.manifest("other"))]
    with served(*engines):
        pass
    assert all(engine.closed.is_set() for engine in engines)


# ---- classes of work


def piled_up(client: EngineClient, engine: fake.GateEngine, *times: int) -> None:  # type: ignore[name-defined]
    """Put stacks while the engine is busy with the first of them."""
    put(client, times[0])
    assert engine.busy.wait(20)
    put(client, *times[1:])


@pytest.mark.parametrize("share_memory", [True, False])
@pytest.mark.parametrize("credit", [1, 2, 4])
def test_live_stacks_that_pile_up_are_predicted_latest_first(
    tmp_path: Path, credit: int, share_memory: bool
) -> None:
    engine = fake.GateEngine()
    with (
        served(engine, credit=credit) as server,
        connected(server, tmp_path, wanted=LIVE, share_memory=share_memory) as client,
    ):
        piled_up(client, engine, 0)
        there = credit - 1  # how many wait at the server; they give way to every newer one
        for newest in range(1, 5):
            put(client, newest)
            given_back = there * max(newest - there, 0)
            fake.wait_until(lambda n=given_back: client.counts.withdrawn == n)
            left = min(newest, there)
            fake.wait_until(lambda n=left: waiting(server) == n)
        engine.open()
        outcomes = client.drain(20)
        counts = client.counts
    assert [type(one) for one in outcomes] == [Prediction] * 5
    assert engine.asked == [0, 4, 3, 2, 1], "newest first, older ones afterwards, none twice, none lost"
    assert (counts.predicted, counts.lost, counts.unpredicted) == (5, 0, 0)


def test_bulk_stacks_are_predicted_in_order(tmp_path: Path) -> None:
    engine = fake.GateEngine()
    with served(engine) as server, connected(server, tmp_path) as client:
        piled_up(client, engine, 0, 1, 2, 3, 4)
        engine.open()
        client.drain(20)
        assert client.counts.withdrawn == 0
    assert engine.asked == [0, 1, 2, 3, 4]


def test_live_work_of_one_client_goes_before_bulk_of_another(tmp_path: Path) -> None:
    engine = fake.GateEngine()
    with (
        served(engine, credit=4) as server,
        connected(server, tmp_path / "plate") as plate,
        connected(server, tmp_path / "scope", wanted=LIVE) as scope,
    ):
        piled_up(plate, engine, 0, 1, 2)
        fake.wait_until(lambda: plate.counts.sent == 9)
        put(scope, 10, 11)
        fake.wait_until(lambda: scope.counts.sent == 6)
        fake.wait_until(lambda: waiting(server) == 4)
        engine.open()
        plate.drain(20)
        scope.drain(20)
    assert engine.asked == [0, 11, 10, 1, 2]


def waiting(server: EngineServer) -> int:
    """Jobs that wait for the engine."""
    counts = server.counts
    return counts.added - counts.taken - counts.removed - counts.expired


# ---- deadlines and cancelling


def test_a_stack_whose_deadline_passes_at_the_server_is_kept_on_disk(tmp_path: Path) -> None:
    def wanted(info: StackInfo) -> Wanted:
        return Wanted(work="live", deadline_ms=80.0 if info.key.time else None)

    engine = fake.GateEngine()
    with served(engine, credit=4) as server, connected(server, tmp_path, wanted=wanted) as client:
        piled_up(client, engine, 0, 1, 2)
        outcomes: list[Outcome] = []
        fake.wait_until(lambda: outcomes.extend(client.poll()) or len(outcomes) == 2)
        engine.open()
        outcomes += client.drain(20)
        counts = client.counts
    found = by_model(outcomes)
    assert isinstance(found[0, ""], Prediction)
    for time_ in (1, 2):
        late = found[time_, ""]
        assert isinstance(late, Unpredicted)
        assert "within 80 ms" in late.reason
        assert Spool(tmp_path).read(Path(late.where)).complete
    assert engine.asked == [0]
    assert (counts.predicted, counts.expired, counts.unpredicted, counts.lost) == (1, 2, 2, 0)
    assert counts.spooled_for == (("deadline", 2),)


def test_a_stack_whose_deadline_passes_before_it_is_sent(tmp_path: Path) -> None:
    settings = ClientSettings(memory_bytes=4 << 20, link=QUICK, wanted=Wanted(deadline_ms=20.0))
    with EngineClient("tcp://127.0.0.1:1", spool=Spool(tmp_path), settings=settings) as client:
        put(client, 0)
        outcomes: list[Outcome] = []
        fake.wait_until(lambda: outcomes.extend(client.poll()) or outcomes)
    (late,) = outcomes
    assert isinstance(late, Unpredicted) and "within 20 ms" in late.reason
    assert len(Spool(tmp_path).list()) == 1


def test_cancelled_stacks_are_not_predicted_and_not_lost(tmp_path: Path) -> None:
    engine = fake.GateEngine()
    with served(engine) as server, connected(server, tmp_path) as client:
        piled_up(client, engine, 0, 1, 2, 3)
        fake.wait_until(lambda: waiting(server) == 1)
        put(client, 4, planes=2)  # still being captured
        for time_ in (0, 1, 3, 4):  # at the engine, at the server, here, begun
            assert client.cancel(fake.info(time_).key)
            assert not client.cancel(fake.info(time_).key), "once is enough"
        assert not client.cancel(fake.info(9).key)
        client.put(fake.slice_of(4, 2))
        outcomes: list[Outcome] = []
        fake.wait_until(lambda: outcomes.extend(client.poll()) or len(outcomes) == 4)
        engine.open()
        found = by_model(outcomes + client.drain(20))
        counts = client.counts
    assert isinstance(found.pop((2, "")), Prediction)
    assert sorted(found) == [(0, ""), (1, ""), (3, ""), (4, "")]
    for outcome in found.values():
        assert isinstance(outcome, Unpredicted)
        assert outcome.reason == "it was cancelled"
        assert Spool(tmp_path).read(Path(outcome.where)).complete, "also the one that was being captured"
    assert engine.asked in ([0, 2], [2])
    assert (counts.cancelled, counts.unpredicted, counts.predicted, counts.lost) == (4, 4, 1, 0)


def test_a_cancelled_stack_can_be_captured_to_its_end_and_no_further(tmp_path: Path) -> None:
    with served(fake.MeanEngine()) as server, connected(server, tmp_path) as client:
        put(client, 0, planes=2)
        client.cancel(fake.info(0).key)
        (outcome,) = client.drain(20)
    assert isinstance(outcome, Unpredicted)
    assert "only 2 of 3 slices" in outcome.reason
    assert Spool(tmp_path).read(Path(outcome.where)).present == (0, 1)
