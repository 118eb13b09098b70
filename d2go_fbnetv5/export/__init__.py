"""Trained models as files for phones and servers: ExecuTorch, ONNX, TorchScript."""

from d2go_fbnetv5.export.api import Calibration, Exported, export_model
from d2go_fbnetv5.export.formats.base import ExportSpec, Format, get_format, list_formats, register_format
from d2go_fbnetv5.export.image_sizes import ImageSizes
from d2go_fbnetv5.export.measure.check import CheckFailedError

__all__ = [
    "Calibration",
    "CheckFailedError",
    "ExportSpec",
    "Exported",
    "Format",
    "ImageSizes",
    "export_model",
    "get_format",
    "list_formats",
    "register_format",
]
