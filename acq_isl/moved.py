"""Where the modules of the first layout went: an old name still imports, and a warning says the new one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = "acq_isl."
# Old and new name of each module, without the package's.
_TABLE = """
actions rules.actions; aiming session.grading.targeting; app session.runner; assemble stream.assembler;
bench cli.bench; broadcast session.runner; cli_build cli.build; cli_engines cli.engines;
cli_faults cli.sim; cli_live cli.view; cli_models cli.models; cli_plan cli.app; cli_scorecard cli.sim;
cli_serving cli.serve; cli_sim cli.sim; cli_specimen cli.sim; cli_teach cli.train; cli_train cli.train;
control session.operator; doctor session.doctor; engines.acceptance engines.openvino.int8;
engines.around engines.pipeline;
engines.choice engines.selection; engines.content engines.image_quality;
engines.cuda engines.tensorrt.cuda; engines.flight engines.pipeline;
engines.half engines.tensorrt.network; engines.judgement engines.int8.accuracy;
engines.ladder engines.fallback; engines.network engines.backend;
engines.openvino_background engines.openvino.background; engines.openvino_cache engines.openvino.cache;
engines.openvino_int8 engines.openvino.int8;
engines.plans engines.tensorrt.plan_cache; engines.precision engines.fp16; engines.tensorrt.fp16 engines.fp16;
engines.precision_graph engines.onnx_graph; engines.provenance engines.model_file;
engines.stack_file readers.read; engines.trt_api engines.tensorrt.api;
engines.trt_build engines.tensorrt.build; engines.trt_compile engines.tensorrt.build;
engines.trt_int8 engines.tensorrt.int8; engines.trt_kept engines.tensorrt.plan_cache;
engines.trt_lane engines.tensorrt.network; engines.trt_network engines.tensorrt.network;
engines.trt_options engines.tensorrt.options; engines.trt_program engines.tensorrt.program;
engines.trt_slot engines.tensorrt.network; evaluation.conditions evaluation.perturbations;
evaluation.find evaluation.inputs; evaluation.outcome evaluation.results;
evaluation.teach evaluation.pseudo_labels; evaluation.trial evaluation.gate_test;
evaluation.truths evaluation.ground_truth; fault_text experiment.faults; faults experiment.faults;
field_image storage.ome_zarr; figures session.progress; fit compatibility; gallery report.figures;
grading session.grading.scores; hooks.act hooks.user_calls; hooks.image_door hooks.image_hooks;
hooks.pycro hooks.pycromanager_backend; hooks.storage hooks.measured_data; hooks.tags hooks.metadata;
hooks.user hooks.user_hooks; hooks.watch hooks.watchdog; instruments session.session;
labels rules.label_names; ledger storage.decision_log; life experiment.simulated; marking session.grade;
measure rules.measurements; messages stream.messages; news events; normalize processing.normalize;
objects processing.segmentation; orders commands; pictures processing.display; plan experiment.planning;
preflight session.preflight; readings rules.measurements; replay session.predict_spool;
run_engine session.engine; sim.camera sim.scope.camera; sim.config sim.scope.config;
sim.core sim.scope.core; sim.core_faults sim.scope.core_faults; sim.core_stages sim.scope.core_stages;
sim.dose sim.specimen.dose; sim.exposure sim.scope.exposure; sim.faults sim.scope.faults;
sim.fluorescence sim.optics.fluorescence; sim.illumination sim.optics.illumination;
sim.illumination_disc sim.optics.illumination; sim.lamp sim.optics.source;
sim.lattice sim.optics.resampling; sim.life sim.specimen.culture; sim.neurons sim.specimen.neurons;
sim.play sim.scope.backlash; sim.prefetch sim.scope.render; sim.read_ndtiff readers.ndtiff;
sim.read_zarr readers.ome_zarr; sim.recorded sim.specimen.recorded; sim.recorded_field readers.recording;
sim.recorded_path readers.read; sim.render sim.scope.render; sim.resample sim.specimen.recorded;
sim.shelf sim.specimen.cache; sim.specimen_aging sim.specimen.aging;
sim.specimen_neurites sim.specimen.neurites; sim.specimen_objects sim.specimen.cells;
sim.specimen_raster sim.specimen.raster; sim.specimen_sensor sim.specimen.sensor;
sim.synthetic sim.specimen.synthetic; sim.tiff readers.tiff; sim.timeline sim.scope.timeline;
sim.transmitted sim.optics.transmitted; sim.truth sim.specimen.truth;
sim.tags sim.view; simulated_optics experiment.simulated;
store storage.prediction_store; stream.ask stream.swap; stream.courier stream.client_thread;
stream.endpoint stream.sockets; stream.held stream.pending_stack; stream.job stream.schedule;
stream.keys stream.sockets; stream.link stream.connection; stream.outbox stream.pending_queue;
stream.ring stream.shared_memory; stream.roster stream.model_registry; stream.router stream.sockets;
stream.serving stream.process; stream.turns stream.pending_stack; stream.watch stream.incremental;
summary session.summary; tiling processing.tiling; training.assess training.score;
training.augment training.data.augment; training.bioimage training.export.bioimageio;
training.bioimage_graph training.export.bioimageio; training.board training.train;
training.checkpoint training.reference.tf_checkpoint; training.dataset training.data.dataset;
training.dense training.reference.dense; training.dense_network training.reference.dense_network;
training.gate training.ood_gate; training.geometry training.data.geometry;
training.google_png readers.image_folder; training.heads training.network;
training.high_pass training.network; training.import_reference training.reference.convert;
training.load_reference training.reference.load; training.losses training.network;
training.onnx_graph training.reference.onnx_graph;
training.pairs training.data.pairs; training.parallel training.distributed;
training.patches training.data.patches; training.recipe training.adapt_config;
training.registration training.data.registration; training.savepoints training.checkpoints;
training.simulate training.data.source_simulated; training.source training.data.sources;
training.source_ndtiff training.data.sources; training.source_tiff training.data.sources;
training.source_zarr training.data.sources; training.sources training.data.sources;
training.splits training.data.splits; training.string_table training.reference.tf_checkpoint;
training.transfer training.learning_curve;
view.address view.feed.address; view.backlog view.feed.queues; view.desk view.feed.requests;
view.halves view.feed.encode; view.hub view.web.clients; view.messages view.feed.messages;
view.napari_layers view.napari.layers; view.napari_look view.napari.style;
view.napari_map view.napari.mosaic; view.napari_marks view.napari.marks;
view.napari_model view.napari.model; view.napari_outlines view.napari.scene;
view.napari_panel view.napari.panel; view.napari_scene view.napari.scene;
view.napari_start view.napari.window; view.napari_thumbnails view.napari.panel;
view.napari_widget view.napari.window; view.napari_window view.napari.window;
view.packets view.web.clients; view.page view.web.app; view.page_process view.web.server;
view.page_server view.web.server; view.previews view.feed.previews; view.reader view.feed.reader;
view.translate view.feed.encode; wire stream.codec
"""
MOVED = {_PACKAGE + old: _PACKAGE + new for old, new in (row.split() for row in _TABLE.split(";"))}
"""Old module name -> new module name, both with the package's."""


class _Moved(Loader):
    """Puts the module of the new name in the place of the old one."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None  # the import system makes an empty one, which does not stay

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        warnings.warn(f"{old} is now {MOVED[old]}", DeprecationWarning, stacklevel=2)
        sys.modules[old] = import_module(MOVED[old])


class MovedFinder(MetaPathFinder):
    """Asked by the import system after everybody else, so it costs nothing where names are new."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Moved()) if fullname in MOVED else None


def follow_old_names() -> None:
    """Let old module names be imported, for the rest of this process."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())
