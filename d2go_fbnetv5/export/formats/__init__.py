"""Formats, the kinds of exported files: one module each. Importing any of them registers the built-in ones."""

from d2go_fbnetv5.export.formats import eager, executorch, onnx, torchscript  # noqa: F401
