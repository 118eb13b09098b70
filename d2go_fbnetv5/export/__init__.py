"""Trained models as files for phones and servers: ExecuTorch, ONNX, TorchScript."""
