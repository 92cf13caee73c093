"""Guarded Pycro-Manager acquisitions, and the capture hook that also works alone."""

from acq_isl.hooks.capture import CaptureHook
from acq_isl.hooks.connect import OpenMicroscope, open_microscope
from acq_isl.hooks.guard import GuardedAcquisition
from acq_isl.hooks.hardware import Hardware
from acq_isl.hooks.measured_data import open_measured, read_slices
from acq_isl.hooks.renewing import RenewingAcquisition
from acq_isl.hooks.signals import StoppedBySignal, StopSignals
from acq_isl.hooks.user_calls import call_user_function, check_function
from acq_isl.hooks.user_hooks import UserHooks
from acq_isl.hooks.user_process import UserMeasurements
from acq_isl.hooks.watchdog import Safety

__all__ = [
    "CaptureHook",
    "GuardedAcquisition",
    "Hardware",
    "OpenMicroscope",
    "RenewingAcquisition",
    "Safety",
    "StopSignals",
    "StoppedBySignal",
    "UserHooks",
    "UserMeasurements",
    "call_user_function",
    "check_function",
    "open_measured",
    "open_microscope",
    "read_slices",
]
