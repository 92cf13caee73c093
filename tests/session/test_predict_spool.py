"""What earlier runs left in their spools is predicted, added to their predictions, and only then removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from acq_isl.errors import EngineError, StackRefused, StorageError
from acq_isl.session import predict_spool as room
from acq_isl.session.evidence import STORE
from acq_isl.session.predict_spool import (
    LocalModels,
    PredictedStack,
    ServedModels,
    predict_spool,
    waiting,
)
from acq_isl.stack import Prediction, ZStack
from acq_isl.storage.prediction_store import PredictionStore, stored
from acq_isl.storage.prediction_store import load as load_prediction
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.connection import ConnectionSettings
from acq_isl.stream.model_registry import ModelRegistry, ServedModel
from acq_isl.stream.server import EngineServer
from acq_isl.stream.spool import Spool, SpooledStack
from doubles import serving as fake

QUICK = ConnectionSettings(beat_s=0.05, reconnect_s=0.02, reconnect_max_s=0.05)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that had no engine for two stacks of its three."""
    folder = tmp_path / "run"
    with PredictionStore(folder / STORE) as store:
        store.put(fake.MeanEngine(sha256="old").predict(stack(0)))
    settings = ClientSettings(memory_bytes=4 << 20, link=QUICK)
    with EngineClient("tcp://127.0.0.1:1", spool=Spool(folder / "spool"), settings=settings) as client:
        for time_ in (1, 2):
            for z in range(3):
                client.put(fake.slice_of(time_, z))
        client.drain(0.0)
    assert len(Spool(folder / "spool").list()) == 2
    return folder


def stack(time_: int) -> ZStack:
    slices = [fake.slice_of(time_, z) for z in range(3)]
    pixels = np.stack([one.pixels for one in slices])
    return ZStack(fake.info(time_), pixels, tuple(one.captured_s for one in slices))


def spool_one(
    folder: Path, time_: int, models: tuple[str, ...] = (), present: tuple[int, ...] = (0, 1, 2)
) -> Path:
    whole = stack(time_)
    pixels, captured_s = whole.pixels[list(present)], tuple(whole.captured_s[z] for z in present)
    spooled = SpooledStack(0, whole.info, present, captured_s, pixels, "no engine", models)
    return Spool(folder).write(spooled)


def local(**engines: object) -> LocalModels:
    return LocalModels(ModelRegistry([ServedModel(e, name, e.sha256) for name, e in engines.items()]))  # type: ignore[attr-defined, arg-type]


def check_predicted(store: Path, times: range, factor: float = 1.0) -> None:
    by_time = {
        load_prediction(store, name).info.key.time: load_prediction(store, name) for name in stored(store)
    }
    assert set(by_time) >= set(times)
    for time_ in times:
        assert np.all(by_time[time_].mean == fake.expected(time_, factor))


def test_a_run_is_completed_by_engines_of_our_own(run: Path) -> None:
    told: list[PredictedStack] = []
    results = predict_spool(run, local(mean=fake.MeanEngine(sha256="new")), report=told.append)
    assert told == results and [one.done for one in results] == [True, True]
    assert "predicted by mean (new)" in results[0].results[0]
    assert Spool(run / "spool").list() == ()
    assert stored(run / STORE) == ("A/1/A1t0Phase", "A/1/A1t1Phase", "A/1/A1t2Phase")
    check_predicted(run / STORE, range(3))
    assert load_prediction(run / STORE, "A/1/A1t2Phase").model_sha256 == "new"
    assert predict_spool(run, local(mean=fake.MeanEngine())) == [], "nothing waits any more"


def test_a_run_is_completed_by_a_server(run: Path) -> None:
    spool_one(run / "spool", 2)  # the same stack of another run in the same folder
    engine = fake.MeanEngine(sha256="new")
    with (
        EngineServer([ServedModel(engine, "mean", "new")], fake.ANY_PORT) as server,
        ServedModels(server.endpoint, QUICK, timeout_s=20) as models,
    ):
        results = predict_spool(run, models)
    assert [one.done for one in results] == [True] * 3
    assert sorted(engine.asked) == [1, 2], "what is there already is not predicted again"
    check_predicted(run / STORE, range(3))


def test_a_client_takes_a_key_twice_when_another_stack_has_it(tmp_path: Path) -> None:
    engine = fake.MeanEngine()
    with (
        EngineServer([ServedModel(engine)], fake.ANY_PORT) as server,
        ServedModels(server.endpoint, QUICK, timeout_s=20) as models,
    ):
        for _ in range(2):
            (outcome,) = models.predict(stack(3), ("",))
            assert isinstance(outcome, Prediction)
    assert engine.asked == [3, 3]


def test_stacks_of_several_models_go_to_those_that_did_not_predict_them(tmp_path: Path) -> None:
    spool_one(tmp_path / "spool", 1, ("one", "two"))
    spool_one(tmp_path / "spool", 2, ("two",))
    one, two = fake.MeanEngine(sha256="1"), fake.MeanEngine(sha256="2", factor=2.0)
    results = predict_spool(tmp_path, local(one=one))
    assert [result.done for result in results] == [False, False]
    assert "waits for the model 'two', and there is one" in results[1].results[0]
    assert len(Spool(tmp_path / "spool").list()) == 2, "both wait for the other model"
    results = predict_spool(tmp_path, local(one=one, two=two))
    assert [result.done for result in results] == [True, True]
    assert "was predicted before: A/1/A1t1Phaseone" in results[0].results[0]
    assert (one.asked, two.asked) == ([1], [1, 2])
    assert set(stored(tmp_path / STORE)) == {"A/1/A1t1Phaseone", "A/1/A1t1Phasetwo", "A/1/A1t2Phasetwo"}
    assert load_prediction(tmp_path / STORE, "A/1/A1t2Phasetwo").model == "two"


class Refuses(fake.MeanEngine):  # type: ignore[name-defined, misc]
    def predict(self, stack: ZStack) -> Prediction:
        raise StackRefused("not my kind", fix="another kind")


class Fails(fake.MeanEngine):  # type: ignore[name-defined, misc]
    def predict(self, stack: ZStack) -> Prediction:
        raise EngineError("out of order")


@pytest.mark.parametrize("engine, said", [(Refuses(), "refused: not my kind"), (Fails(), "out of order")])
def test_what_is_not_predicted_stays(run: Path, engine: object, said: str) -> None:
    results = predict_spool(run, local(mean=engine))
    assert all(said in one.results[0] and not one.done for one in results)
    assert len(Spool(run / "spool").list()) == 2
    assert stored(run / STORE) == ("A/1/A1t0Phase",)


def test_incomplete_and_damaged_stacks_are_named_and_stay(tmp_path: Path) -> None:
    spool_one(tmp_path / "spool", 1, present=(0, 2))
    damaged = spool_one(tmp_path / "spool", 2)
    damaged.write_bytes(damaged.read_bytes()[:900])
    results = predict_spool(tmp_path, local(mean=fake.MeanEngine()))
    assert "only 2 of 3 slices" in results[0].results[0]
    assert "cannot be read" in results[1].results[0]
    assert len(Spool(tmp_path / "spool").list()) == 2


def test_kept_if_wanted_and_not_predicted_twice(run: Path) -> None:
    engine = fake.MeanEngine(sha256="new")
    for _ in range(2):
        predict_spool(run, local(mean=engine), keep=True)
    assert engine.asked == [1, 2]
    assert len(Spool(run / "spool").list()) == 2
    assert len(stored(run / STORE)) == 3


def test_a_disk_that_lies_removes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = room.load

    def lies(path: Path, name: str) -> Prediction:
        prediction = real(path, name)
        prediction.mean[0, 0, 0] += 1
        return prediction

    monkeypatch.setattr(room, "load", lies)
    with pytest.raises(StorageError, match="nothing was removed"):
        predict_spool(run, local(mean=fake.MeanEngine(sha256="new")))
    assert len(Spool(run / "spool").list()) == 2


def test_a_replay_that_was_cut_off_goes_on_where_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(spool: Spool, path: Path) -> None:
        raise KeyboardInterrupt

    engine = fake.MeanEngine(sha256="new")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Spool, "remove", cut_off)
        predict_spool(run, local(mean=engine))
    results = predict_spool(run, local(mean=engine))
    assert [one.done for one in results] == [True, True]
    assert engine.asked == [1, 2]
    check_predicted(run / STORE, range(3))


def test_a_run_that_goes_on_is_left_alone(run: Path) -> None:
    with (
        PredictionStore(run / STORE, extend=True),
        pytest.raises(StorageError, match="being written by another process"),
    ):
        predict_spool(run, local(mean=fake.MeanEngine()))


def test_where_predictions_belong(run: Path, tmp_path: Path) -> None:
    assert waiting(run)[1] == run / STORE
    assert waiting(run / "spool") == waiting(run)
    alone = spool_one(tmp_path / "acq-isl-spool", 1)
    assert waiting(alone.parent) == ((alone,), alone.parent / STORE)
    with pytest.raises(StorageError, match="no folder"):
        waiting(tmp_path / "nowhere")


def test_a_folder_of_somebodys_images_is_left_as_it_is(tmp_path: Path) -> None:
    image = tmp_path / "20261128_A1.ome.tif"
    tifffile.imwrite(image, np.zeros((3, 8, 8), np.uint16), ome=True, photometric="minisblack")
    before = image.read_bytes()
    with pytest.raises(StorageError, match="neither a run nor stacks that wait"):
        predict_spool(tmp_path, local(mean=fake.MeanEngine()))
    assert [*tmp_path.iterdir()] == [image] and image.read_bytes() == before


def test_no_server(run: Path) -> None:
    with (
        pytest.raises(EngineError, match="no engine answers"),
        ServedModels("tcp://127.0.0.1:1", QUICK, timeout_s=0.1),
    ):
        pass
