"""Puts the passes together: one recording with times, one in detail, the kernels, and out comes a profile.

Pure but for a warning in the log. What each number means is written in `herald.profiles`.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from herald.config import ClassesConfig
from herald.errors import ProfileError
from herald.hooks.classes import told_apart
from herald.hooks.kernel_facts import joinable
from herald.hooks.profiling.flops import flops
from herald.hooks.profiling.origins import Origin, origins
from herald.hooks.profiling.positions import Array, Positions, SignatureTimes, keys_of, ops_of, times_by_key
from herald.hooks.profiling.traffic import StorageNumbers, Traffic, traffic
from herald.hooks.recorder import Recording, SignatureInfo
from herald.profiles import Iteration, KernelFacts, OpInstance, OpProfile, Profile

_log = logging.getLogger("herald")
_MOST_SELF_NS = 2**32 - 1  # as the hook keeps it

_WORKER_RATIO = 10  # an op whose calls take that much more time than itself leaves its work to them

Kernels = Mapping[str, tuple[KernelFacts, ...]]


@dataclass(frozen=True)
class Passes:
    """What the passes measured. Bounds are begin and end of each iteration on the host, in ns."""

    timed: Recording
    timed_bounds_ns: Sequence[tuple[int, int]]
    detail: Recording
    detail_bounds_ns: Sequence[tuple[int, int]]  # of which the last iteration is kept
    wall_ns: int
    host_ns: int
    kernels: Kernels = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where and under what a profile was made."""

    device: str
    driver: str | None
    torch: str
    created: str
    num_sms: int | None
    workload: str = ""


def assemble(passes: Passes, place: Place, parameters: Iterable[str] = ()) -> Profile:
    """The profile. ``parameters``: names and shapes that the fingerprint covers. Raises ProfileError: no op seen."""
    iterations = ops_of(passes.timed, passes.timed_bounds_ns)
    if not sum(len(places) for places in iterations):
        raise ProfileError(
            f"no op was seen on {place.device}: a step function has to run one iteration each time that it is called, "
            "on the device that is profiled"
        )
    positions = Positions.of(passes.timed, iterations, passes.timed_bounds_ns)
    places = ops_of(passes.detail, passes.detail_bounds_ns)[-1]
    if positions is not None and not np.array_equal(positions.keys, keys_of(passes.detail, places)):
        positions = None
    if positions is None:
        _log.warning(
            "iterations differ in their ops (shapes that change, ops that run now and then): times are medians per op "
            "signature, and the iteration in the profile is one of them"
        )
    details = _Details.of(passes.detail, places)
    times = _uncounted(times_by_key(passes.detail, [places], None)) | times_by_key(passes.timed, iterations, positions)
    signatures = _signatures(passes, iterations, places)
    ops = tuple(_op(signature, times[key], details, passes.kernels) for key, signature in signatures.items())
    ops = told_apart(ops, place.device if place.driver else None, ClassesConfig.light_percent)
    index = {key: i for i, key in enumerate(signatures)}
    instances = _instances(passes, places, positions, details, index)
    device_ns = sum(instance.self_ns for instance in instances)
    return Profile(
        device=place.device,
        driver=place.driver,
        torch=place.torch,
        ops=ops,
        workload=place.workload,
        fingerprint=_fingerprint([ops[index[details.keys[place]]].signature for place in places.tolist()], parameters),
        iteration=Iteration(passes.wall_ns, device_ns, passes.host_ns, instances),
        created=place.created,
        num_sms=place.num_sms,
    )


@dataclass(frozen=True)
class _Details:
    """What the recording in detail says, by the place of an event."""

    keys: dict[int, int]
    traffic: dict[int, Traffic]
    bytes_in: dict[int, int]
    bytes_out: dict[int, int]
    flops: dict[int, int]
    origins: list[Origin]
    places_by_key: dict[int, list[int]]

    @classmethod
    def of(cls, recording: Recording, places: Array) -> "_Details":
        numbers = StorageNumbers()
        in_order = [int(place) for place in np.sort(places)]
        keys = dict(zip(in_order, keys_of(recording, np.sort(places)).tolist(), strict=True))
        places_by_key: defaultdict[int, list[int]] = defaultdict(list)
        for place, key in keys.items():
            places_by_key[key].append(place)
        moved = {place: traffic(recording, place, numbers) for place in in_order}
        return cls(
            keys=keys,
            traffic=moved,
            bytes_in={place: of.bytes_in for place, of in moved.items()},
            bytes_out={place: of.bytes_out for place, of in moved.items()},
            flops=_flops(recording, in_order),
            origins=origins(recording),
            places_by_key=dict(places_by_key),
        )

    def mean(self, of: Mapping[int, int], key: int) -> int:
        """Of the calls of a signature."""
        places = self.places_by_key.get(key, ())
        return round(sum(of.get(place, 0) for place in places) / len(places)) if places else 0


def _flops(recording: Recording, places: Sequence[int]) -> dict[int, int]:
    """FLOPs by place: counted at the innermost op with a formula, credited to the op that spends the time.

    `aten::_convolution` has a formula and no work of its own, what it calls may have the work and no formula.
    """
    selves_ns, inside = recording.events["self_ns"], set(places)
    by_signature = [flops(signature.name, signature.args) for signature in recording.signatures]
    credited: dict[int, int] = {}
    has_counted: set[int] = set()  # a formula was used here or within
    busiest: dict[int, int] = {}  # of the ops within, the one with the most time
    for place in reversed(places):  # from the inside out
        within = busiest.get(place, place)
        count = by_signature[int(recording.events["signature"][place])]
        if count is not None and place not in has_counted:
            worker = within if selves_ns[within] > _WORKER_RATIO * selves_ns[place] else place
            credited[worker] = credited.get(worker, 0) + count
            has_counted.add(place)
        around = _op_around(recording, place, inside)
        if around is not None:
            busiest[around] = max(busiest.get(around, within), within, place, key=lambda at: int(selves_ns[at]))
            has_counted |= {around} if place in has_counted else set()
    return credited


def _op_around(recording: Recording, place: int, inside: set[int]) -> int | None:
    parent = int(recording.events["parent"][place])
    while parent >= 0 and parent not in inside:
        parent = int(recording.events["parent"][parent])
    return parent if parent >= 0 else None


def _signatures(passes: Passes, iterations: Sequence[Array], places: Array) -> dict[int, SignatureInfo]:
    """All op signatures by key, in order of first sight."""
    found: dict[int, SignatureInfo] = {}
    for recording, seen in ((passes.timed, np.sort(np.concatenate(iterations))), (passes.detail, np.sort(places))):
        for signature in dict.fromkeys(recording.events["signature"][seen].tolist()):
            info = recording.signatures[signature]
            found.setdefault(info.key, info)
    return found


def _uncounted(times: Mapping[int, SignatureTimes]) -> dict[int, SignatureTimes]:
    """Of ops that were seen in detail, perhaps only there: how often an iteration calls them is not known."""
    return {key: replace(each, calls=0.0) for key, each in times.items()}


def _op(signature: SignatureInfo, times: SignatureTimes, details: _Details, kernels: Kernels) -> OpProfile:
    launched = kernels.get(joinable(signature.text), ())
    key = signature.key
    return OpProfile(
        signature=signature.text,
        key=key,
        self_ns=_device_ns(times.self_ns, launched),
        numel=signature.numel,
        calls=times.calls,
        host_ns=times.host_ns,
        bytes_in=details.mean(details.bytes_in, key),
        bytes_out=details.mean(details.bytes_out, key),
        flops=details.mean(details.flops, key),
        kernels=launched,
    )


def _device_ns(self_ns: int, kernels: Sequence[KernelFacts]) -> int:
    """Without launch gaps where the kernels are known; those on several streams may overlap, hence the least.

    The recorder reads 0 for ops that it no longer tells from nothing; then the kernels alone know.
    """
    if kernels:
        kernels_ns = round(sum(kernel.calls * kernel.duration_ns for kernel in kernels))
        self_ns = min(self_ns or kernels_ns, kernels_ns)
    return min(self_ns, _MOST_SELF_NS)


def _instances(
    passes: Passes, places: Array, positions: Positions | None, details: _Details, index: Mapping[int, int]
) -> tuple[OpInstance, ...]:
    """In the order in which they began."""
    events = passes.detail.events
    begun_ns = passes.detail_bounds_ns[-1][0]
    if positions is None:
        begins_ns, hosts_ns = events["begin_ns"][places] - begun_ns, (events["end_ns"] - events["begin_ns"])[places]
        selves_ns = events["self_ns"][places]
    else:
        begins_ns, hosts_ns, selves_ns = positions.begin_ns, positions.host_ns, positions.self_ns
    return tuple(
        OpInstance(
            op=index[details.keys[int(places[i])]],
            phase=details.origins[int(places[i])].phase,
            module=details.origins[int(places[i])].module,
            begin_ns=int(begins_ns[i]),
            host_ns=int(hosts_ns[i]),
            self_ns=min(int(selves_ns[i]), _MOST_SELF_NS),
            reads=details.traffic[int(places[i])].reads,
            writes=details.traffic[int(places[i])].writes,
        )
        for i in np.argsort(begins_ns, kind="stable")
    )


def _fingerprint(signatures: Iterable[str], parameters: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in (*signatures, "", *parameters):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:16]
