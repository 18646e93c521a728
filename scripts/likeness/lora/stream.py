"""Safetensors files one tensor at a time: read through a memory map, written without ever holding the whole file.

Bytes are a function of the content: keys and metadata are sorted, and types lie in the order of their size, unless one
is to come first, so that every tensor is aligned.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import torch
from safetensors import SafetensorError, safe_open

from likeness.errors import UserError
from likeness.store import clear_leftovers, temporary_beside

TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the types in a file's header."""

_PICKLE_STARTS = (b"\x80", b"PK\x03\x04")
_REMAP_BYTES = 256 * 2**20
_COPY_BYTES = 4 * 2**20


class MappedTensors(Mapping[str, torch.Tensor]):
    """A safetensors file's tensors, each mapped from the file when asked for; the file is opened anew now and then.

    Pages of a mapped file count as the process's memory while it is open, so a file that is read once from front to
    back would count in full. Floating-point types of one byte, in which nothing can be computed, are given as bfloat16,
    which holds all their values. UserError where the file is absent, torn, empty or a pickle.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file, self._read_bytes = _opened(path), 0
        self._keys = dict.fromkeys(self._file.keys())
        self.metadata: dict[str, str] = self._file.metadata() or {}

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self._keys:
            raise KeyError(key)
        with self._lock:
            if self._read_bytes > _REMAP_BYTES:
                self._file, self._read_bytes = _opened(self.path), 0
            tensor = self._file.get_tensor(key)
            self._read_bytes += tensor.nbytes
        return tensor.bfloat16() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape by the header, without its values."""
        with self._lock:
            return tuple(self._file.get_slice(key).get_shape())

    def type_name(self, key: str) -> str:
        """A tensor's type by the header, such as 'BF16'."""
        with self._lock:
            return self._file.get_slice(key).get_dtype()


def write_stream(
    path: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: Callable[[], Mapping[str, str]],
    room: int = 0,
    first: torch.dtype | None = None,
    check: Callable[[Path], object] | None = None,
) -> str:
    """Write tensors, given in the order of their keys, as one safetensors file that appears whole; returns its sha256.

    `metadata` is asked when all tensors have been written, so it may tell what they turned out to be. `room` bytes, a
    multiple of 8, are kept for the header and filled up with spaces: where it fits and all tensors have one type, they
    are written once, in their place. Tensors of the type `first` lie before all others. ValueError for keys out of
    order, and where `first` would leave larger types unaligned. `check` is given the finished file before it takes its
    place; what it raises leaves there what was there before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)
    temporary = temporary_beside(path)
    entries: list[tuple[str, torch.dtype, list[int], int]] = []
    with ExitStack() as stack:
        stack.callback(temporary.unlink, missing_ok=True)
        file = stack.enter_context(temporary.open("w+b"))
        file.seek(room)
        # The first type goes to its place in the file; others wait elsewhere.
        bodies: dict[torch.dtype, IO[bytes]] = {}
        for key, tensor in tensors:
            if entries and key <= entries[-1][0]:
                raise ValueError(
                    f"{key!r} comes after {entries[-1][0]!r}: keys must be given in their order, once each"
                )
            if tensor.dtype not in bodies:
                bodies[tensor.dtype] = stack.enter_context(TemporaryFile(dir=path.parent)) if bodies else file
            bodies[tensor.dtype].write(_bytes_of(tensor))
            entries.append((key, tensor.dtype, list(tensor.shape), tensor.nbytes))
        order = sorted(bodies, key=lambda dtype: (dtype != first, -dtype.itemsize, TYPE_NAMES[dtype]))
        size = sum(size for _, dtype, _, size in entries if dtype == first)
        if any(size % dtype.itemsize for dtype in order):
            raise ValueError(f"{size} bytes of {first} cannot lie before larger types: those would not be aligned")
        header = _header(entries, order, metadata(), room)
        if len(header) == room and len(bodies) == 1:
            sha256 = _completed(file, header)
        else:
            # What was written stays readable through its open file.
            temporary.unlink()
            with temporary.open("wb") as joined:
                sha256 = _joined(joined, header, [(bodies[one], room * (bodies[one] is file)) for one in order])
        if check is not None:
            _check_finished(temporary, path, check)
        temporary.replace(path)
    return sha256


def _check_finished(temporary: Path, path: Path, check: Callable[[Path], object]) -> None:
    try:
        check(temporary)
    except UserError as error:
        raise UserError(str(error).replace(str(temporary), str(path))) from error


def _header(
    entries: list[tuple[str, torch.dtype, list[int], int]],
    order: list[torch.dtype],
    metadata: Mapping[str, str],
    room: int,
) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    position = 0
    for dtype in order:
        for key, own_dtype, shape, size in entries:
            if own_dtype == dtype:
                offsets = [position, position + size]
                header[key] = {"dtype": TYPE_NAMES[dtype], "shape": shape, "data_offsets": offsets}
                position += size
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text = text.ljust(room - 8)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _completed(file: IO[bytes], header: bytes) -> str:
    file.seek(0)
    file.write(header)
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.flush()
    return sha256


def _joined(file: IO[bytes], header: bytes, bodies: list[tuple[IO[bytes], int]]) -> str:
    digest = hashlib.sha256(header)
    file.write(header)
    for body, start in bodies:
        body.seek(start)
        while part := body.read(_COPY_BYTES):
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _opened(path: Path) -> safe_open:
    if not path.is_file():
        raise UserError(f"LoRA file {path} does not exist.")
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            start = file.read(4)
        raise UserError(
            f"LoRA file {path} is not a readable safetensors file{_why_unreadable(start, str(error))}"
        ) from None


def _why_unreadable(start: bytes, error: str) -> str:
    # Asked after the fact only: a healthy header may begin with the same bytes as a pickle.
    if not start:
        return ": it is empty. Copy it again."
    if start.startswith(_PICKLE_STARTS):
        return (
            " but a pickle (.pt, .bin), which can run code when opened and is not read. Ask for the .safetensors file."
        )
    return f" ({error}). It may be torn: copy it again."
