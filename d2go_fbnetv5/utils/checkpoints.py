"""Files of tensors: written whole, and read only if they are intact and run no code."""

from __future__ import annotations

import errno
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.files import naming, replacing, write_atomically
from d2go_fbnetv5.utils.shipped import or_shipped

SAFETENSORS = ".safetensors"
_ARCHIVE = b"PK\x03\x04"  # torch writes archives since 1.6; before that, pickles with the tensors behind them
_POINTER = b"version https://git-lfs"  # what a checkout has in place of a large file


def save_tensors(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write tensors and plain values whole or not at all; equal contents give equal bytes.

    Raises:
        OSError: names the file, also where the disk is full.
    """
    # torch names the archive inside after the file that it opens itself.
    with replacing(path) as temporary, open(temporary, "wb") as file:
        sink = _Sink(file)
        try:
            torch.save(dict(content), cast("IO[bytes]", sink))  # which it writes to, and no more
        except Exception:
            if (
                sink.error is not None
            ):  # which torch hides behind one of its own, of the archive that it cannot end
                raise sink.error from None
            raise


class _Sink:
    """A file that remembers why it could not be written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """Return what a file of `torch.save` or of safetensors holds, on the CPU.

    An archive's checksums are compared, which torch does not. Files from before torch 1.6 and safetensors have none.

    Args:
        path: of a file, or the name of one that ships with the package, as `or_shipped` takes it.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is damaged, is no such file, or holds more than dense tensors and plain values.
    """
    path = Path(or_shipped(Path(path).expanduser()))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is a folder, not a file" if path.is_dir() else f"{path} does not exist"
        )
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    with naming(path), open(path, "rb") as file:
        begin = file.read(len(_POINTER))
        if begin == _POINTER:
            raise InputError(
                f"{path} is a pointer of Git LFS and not the file itself; `git lfs pull` gets that"
            )
        if begin.startswith(_ARCHIVE):
            _check_archive(path, file)
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd contents, which are judged below
                content = torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except (
            Exception
        ) as error:  # of torch, which fails in many ways; its advice is to load what may run code
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            if found:
                raise InputError(
                    f"{path} asks for {found[1]}, but only tensors and plain values are read from a checkpoint, as "
                    "anything else may run code"
                ) from error
            raise InputError(f"{path} is not a checkpoint of tensors, or is cut off") from error
    for where, tensor in _tensors(content):
        kind = _unusual(tensor)
        if kind:
            raise InputError(f"{path}: {where!r} is a {kind} tensor, allowed: dense ones with their values")
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with naming(path):
            return load(path.read_bytes())
    except SafetensorError as error:
        raise InputError(f"{path} is no file of safetensors, or is cut off ({error})") from error


def save_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], notes: Mapping[str, str]
) -> None:
    """Write tensors for others to read, whole or not at all.

    Args:
        notes: texts that are kept with them, such as how they came about.

    Raises:
        OSError: names the file, also where the disk is full.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, metadata=dict(notes)))


def _check_archive(path: Path, file: IO[bytes]) -> None:
    """Refuse an archive that is not as torch writes it, before anything of it is unpacked."""
    try:
        with zipfile.ZipFile(file) as archive:
            problem = _problem(archive, os.fstat(file.fileno()).st_size)
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise InputError(f"{path} is damaged or cut off ({error})") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise InputError(f"{path} is damaged: it points to places before its beginning") from error
    if problem:
        raise InputError(f"{path} is {problem}")


def _problem(archive: zipfile.ZipFile, size: int) -> str:
    """Return what is wrong with an archive in a file of `size` bytes, "" for nothing."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program, not a checkpoint"
    if not any(name.endswith("/data.pkl") for name in names):
        return "an archive of something else than tensors"
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > size:
        return "a compressed archive, which torch does not write"
    damaged = archive.testzip()
    return "" if damaged is None else f"damaged: the checksum of its part {damaged} is wrong"


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested mappings and sequences, which may hold each other in a circle, each with its keys."""
    rest, seen = [("", content)], set()
    while rest:
        where, value = rest.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield where, value
        elif isinstance(value, Mapping):
            rest += [(f"{where}.{key}".lstrip("."), item) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            rest += [(f"{where}[{index}]", item) for index, item in enumerate(value)]


def _unusual(tensor: Tensor) -> str:
    """Return what keeps a tensor from being used as it is, "" for nothing."""
    if tensor.is_meta:
        return "meta"
    if tensor.is_nested or tensor.layout is not torch.strided:
        return "nested" if tensor.is_nested else "sparse"
    if tensor.is_quantized:
        return "quantized"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "expanded"
    return "complex" if tensor.is_complex() else ""
