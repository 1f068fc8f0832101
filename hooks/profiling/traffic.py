"""What an op reads and writes: its part in the data flow, and the bytes that it has to move at least.

A view gives its input's storage back and writes nothing. Pure: a recording in detail in, numbers out.
"""

from dataclasses import dataclass

from herald.hooks.profiling.positions import Array
from herald.hooks.recorder import OVERWRITTEN, Recording

# Ops that write their first input without a look at what it held: nothing of it has to be moved in.
_OVERWRITE = frozenset(
    f"aten::{name}_" for name in ("copy", "fill", "zero", "normal", "uniform", "bernoulli", "random", "exponential")
)


@dataclass(frozen=True)
class Traffic:
    """Of one op event."""

    reads: tuple[int, ...]  # storages, by the numbers of `StorageNumbers`; in-place ops have theirs in both
    writes: tuple[int, ...]
    bytes_in: int
    bytes_out: int


class StorageNumbers:
    """Small numbers for storages, in the order of first sight."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def __getitem__(self, storage: int) -> int:
        return self._numbers.setdefault(storage, len(self._numbers))


def traffic(recording: Recording, place: int, numbers: StorageNumbers) -> Traffic:
    """Of the event at ``place``."""
    event = recording.events[place]
    first, num_in = int(event["first_tensor"]), int(event["num_in"])
    tensors = recording.tensors[first : first + num_in + int(event["num_out"])]
    inputs, outputs = tensors[:num_in], tensors[num_in:]
    reads, writes = _sizes(inputs), _sizes(inputs[inputs["written"] > 0])
    made = {storage: size for storage, size in _sizes(outputs).items() if storage not in reads}
    if len(outputs) and not writes and not made:  # a view
        return Traffic(_numbered(reads, numbers), (), 0, 0)
    least = 1 if recording.signatures[event["signature"]].name in _OVERWRITE else OVERWRITTEN
    looked_at = _sizes(inputs[inputs["written"] < least])
    writes |= made
    return Traffic(_numbered(reads, numbers), _numbered(writes, numbers), sum(looked_at.values()), sum(writes.values()))


def _sizes(tensors: Array) -> dict[int, int]:
    """Bytes by storage: of several views of one the largest, of an expanded one what there is."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        storage = int(tensor["storage"])
        size = min(int(tensor["bytes"]), int(tensor["storage_bytes"]))
        sizes[storage] = max(size, sizes.get(storage, 0))
    return sizes


def _numbered(sizes: dict[int, int], numbers: StorageNumbers) -> tuple[int, ...]:
    return tuple(numbers[storage] for storage in sizes)
