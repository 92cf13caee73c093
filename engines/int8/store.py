"""int8 networks and the judgement on them: beside the model, or in the user's cache for the demo model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from acq_isl.engines.int8.accuracy import Accuracy
from acq_isl.engines.model_file import SHIPPED, ModelFile
from acq_isl.errors import EngineError
from acq_isl.files import default_folder, read_regular, write_whole
from acq_isl.stack import ZStack

OPENVINO_FILES = "network.xml", "network.bin"
TENSORRT_FILES = ("tensorrt.onnx",)
TENSORRT_MAKER = "onnxruntime, form 1"

_MOST_NOTE_BYTES = 1 << 20

_log = logging.getLogger(__name__)


class Int8Judgement(Accuracy):
    """Whether an int8 network may be used, as it lies beside the network."""

    format: Literal["acq-isl-int8/2"] = "acq-isl-int8/2"
    model_sha256: str
    made_by: str
    """What made the network, with its version; a network made by another is judged again."""
    files: dict[str, str]
    """SHA-256 of each file of the network, by name."""
    accepted: bool
    stacks: tuple[str, ...]
    """SHA-256 of the pixels of each stack that judged."""
    judged_at: str
    """ISO 8601 local time with offset."""

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, fields: Any) -> Any:
        """Formats 1 named their files by field, each back end its own."""
        match fields:
            case {"format": "acq-isl-int8-onnx/1", "onnx_sha256": digest, **others}:
                made_by, files = TENSORRT_MAKER, dict.fromkeys(TENSORRT_FILES, digest)
            case {"format": "acq-isl-int8/1", "xml_sha256": xml, "weights_sha256": weights, **others}:
                made_by = f"openvino {others.pop('openvino', '')}, form {others.pop('form', 0)}"
                files = dict(zip(OPENVINO_FILES, (xml, weights), strict=True))
            case _:
                return fields
        return others | {"format": "acq-isl-int8/2", "made_by": made_by, "files": files}


@dataclass(frozen=True, slots=True)
class Int8Store:
    """Where one back end keeps the int8 network of a model, and the judgement on it."""

    note: str
    """File name of the judgement."""
    files: tuple[str, ...]
    """File names of the network."""
    made_by: str
    """As in `Int8Judgement`."""
    command: str
    """What makes and judges it again, for people."""

    def load(self, model: ModelFile) -> tuple[Int8Judgement, tuple[bytes, ...]] | None:
        """The judgement and the network's files, if they are there and belong together and to the model."""
        folder = int8_folder(model)
        try:
            found = Int8Judgement.model_validate_json(read_regular(folder / self.note, _MOST_NOTE_BYTES))
            contents = tuple(read_regular(folder / name) for name in self.files)
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            _log.warning("int8 is not used, its note in %s cannot be read: %s", folder, error)
            return None
        wanted = model.info.sha256, self.made_by, self._digests(contents)
        if wanted != (found.model_sha256, found.made_by, found.files):
            _log.warning(
                "int8 is not used: the model, the network or what makes it changed since it was judged at "
                "%s; run %s again",
                found.judged_at,
                self.command,
            )
            return None
        return found, contents

    def save(
        self, model: ModelFile, contents: Sequence[bytes], found: Accuracy, stacks: Sequence[ZStack]
    ) -> Int8Judgement:
        """Keep a network and the judgement on it, accepted or not; EngineError if that cannot be written."""
        judgement = Int8Judgement(
            **found.model_dump(),
            model_sha256=model.info.sha256,
            made_by=self.made_by,
            files=self._digests(contents),
            accepted=not found.reason,
            stacks=tuple(_sha256(stack.pixels.tobytes()) for stack in stacks),
            judged_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        )
        folder = int8_folder(model)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Without its note a network is not used, so the note goes last.
            (folder / self.note).unlink(missing_ok=True)
            for name, content in zip(self.files, contents, strict=True):
                write_whole(folder / name, content)
            write_whole(folder / self.note, judgement.model_dump_json(indent=1))
        except OSError as error:
            raise EngineError(
                f"the int8 form cannot be kept in {folder}: {error}",
                wanted="a folder that can be written",
                fix="copy the model to a folder of yours and use it from there",
            ) from error
        return judgement

    def _digests(self, contents: Sequence[bytes]) -> dict[str, str]:
        return {name: _sha256(content) for name, content in zip(self.files, contents, strict=True)}


def int8_folder(model: ModelFile) -> Path:
    """Where the int8 networks of a model are kept."""
    if model.info.where in SHIPPED:
        return default_folder() / "int8" / model.info.sha256[:16]
    path = Path(model.info.where)
    return path.with_name(f"{path.name}.int8")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
