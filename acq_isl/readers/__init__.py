"""Every file format of recorded images, read once for everybody; another package adds a `Reader`."""

from acq_isl.readers.recording import DataSet, Lengths, Reader, RecordedChannel, RecordedField

__all__ = ["DataSet", "Lengths", "Reader", "RecordedChannel", "RecordedField"]
