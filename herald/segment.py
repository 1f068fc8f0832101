"""The shared-memory segment behind a table: created whole, checked before it is used, never repaired."""

import ctypes
import mmap
import os
import resource
import time
from contextlib import suppress

import posix_ipc

from herald import layout, native
from herald.domains import DomainLock, segment_name, segment_path
from herald.errors import TableError


def unlink_segment(domain: str) -> None:
    """Remove it, if it is there; who has it mapped keeps it."""
    with suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_shared_memory(segment_name(domain))


def open_segment(domain: str, lock: DomainLock) -> tuple[mmap.mmap, int]:
    """Map the segment, creating it if there is none; with its inode. Raises TableError.

    Under the membership lock, so that it is never half made by another.
    """
    name = segment_name(domain)
    try:
        shared = posix_ipc.SharedMemory(name)
    except posix_ipc.ExistentialError:
        return _create(domain)
    except posix_ipc.PermissionsError as e:
        raise TableError(f"/dev/shm{name} belongs to someone else: use another domain (HERALD_DOMAIN)") from e
    try:
        found = os.fstat(shared.fd)
        memory = mmap.mmap(shared.fd, found.st_size) if found.st_size >= ctypes.sizeof(layout.Header) else None
    finally:
        shared.close_fd()
    if _was_abandoned(memory, found.st_size) and not lock.anyone_alive():
        unlink_segment(domain)
        return _create(domain)
    _check_header(domain, memory, found.st_size)
    assert memory is not None
    return memory, found.st_ino


def _was_abandoned(memory: mmap.mmap | None, size: int) -> bool:
    """Whether its creator died before it wrote the magic, which comes last: nobody can have joined such a table."""
    return size == 0 or (memory is not None and not any(memory[:8]))


def _check_header(domain: str, memory: mmap.mmap | None, size: int) -> None:
    path, cure = segment_path(domain), f"stop what uses it and run `herald reset --domain {domain}`"
    if memory is None:
        raise TableError(f"{path} is truncated: {size} bytes, a header needs {ctypes.sizeof(layout.Header)}; {cure}")
    header = layout.Header.from_buffer_copy(memory)
    if header.magic != layout.MAGIC:
        raise TableError(f"{path} is not a Herald table: magic {header.magic:#x}, expected {layout.MAGIC:#x}; {cure}")
    if header.version != layout.VERSION:
        raise TableError(
            f"{path} has layout version {header.version}, this Herald speaks {layout.VERSION}: "
            f"another version of Herald made it; {cure}"
        )
    expected = _geometry(resource.getpagesize())
    found = {field: getattr(header, field) for field in expected}
    if size != expected["total_bytes"] or found != expected:
        wrong = [
            f"{field} {found[field]}, expected {expected[field]}"
            for field in expected
            if found[field] != expected[field]
        ]
        raise TableError(
            f"{path} is truncated or damaged ({'; '.join([f'{size} bytes', *wrong])}, expected "
            f"{expected['total_bytes']} bytes); {cure}"
        )


def _geometry(page_bytes: int) -> dict[str, int]:
    """What the header of a sound table says of sizes and places on a machine with such pages."""
    memory = bytearray(int(native.table().herald_table_bytes(page_bytes)))
    native.table().herald_table_initialise(ctypes.addressof(ctypes.c_char.from_buffer(memory)), page_bytes, 0)
    header = layout.Header.from_buffer_copy(memory)
    fields = ("page_bytes", "total_bytes", "num_rows", "row_bytes", "rows_offset", "gates_offset", "gates_bytes")
    return {field: getattr(header, field) for field in fields}


def _create(domain: str) -> tuple[mmap.mmap, int]:
    page = resource.getpagesize()
    size = int(native.table().herald_table_bytes(page))
    try:
        shared = posix_ipc.SharedMemory(segment_name(domain), posix_ipc.O_CREX, mode=0o600, size=size)
    except (posix_ipc.Error, OSError) as e:
        raise TableError(
            f"cannot create {segment_path(domain)} ({size} bytes): {e}; is /dev/shm writable and not full?"
        ) from e
    try:
        inode = os.fstat(shared.fd).st_ino
        os.posix_fallocate(shared.fd, 0, size)  # a full /dev/shm is an error now, not a SIGBUS later
        memory = mmap.mmap(shared.fd, size)
    except OSError as e:
        unlink_segment(domain)
        raise TableError(f"/dev/shm has no room for {size} bytes: {e.strerror}; free some or enlarge it") from e
    finally:
        shared.close_fd()
    initialise(memory, page)
    return memory, inode


def initialise(memory: mmap.mmap, page_bytes: int) -> None:
    """Make zeroed memory a table; the magic appears last."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    native.table().herald_table_initialise(address, page_bytes, time.time_ns())
