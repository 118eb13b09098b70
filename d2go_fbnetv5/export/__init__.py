"""Trained models as files for phones and servers: ExecuTorch, ONNX, TorchScript."""

from d2go_fbnetv5.export.api import FORMATS, Calibration, Exported, export_model
from d2go_fbnetv5.export.measure.check import CheckFailedError

__all__ = ["FORMATS", "Calibration", "CheckFailedError", "Exported", "export_model"]
