"""The Python view of the shared table: the same fields at the same places as herald/csrc/table.hpp.

A test compares the two, field by field. Nothing here reads or writes; who may write a field is said in table.hpp.
"""

import ctypes

MAGIC = 0x31304C4152454811
VERSION = 4
MAX_JOBS = 64
MAX_DEVICES = 16
NUM_CLASSES = 4
CLASS_ATTACHED = 0  # no gate: a bit for every high-priority job of the device
CLASS_HEAVY = 1
GATE_STRIDE_BYTES = 64
HISTOGRAM_BUCKETS = 512
MAX_HIGH_JOBS_PER_DEVICE = 32

LEAD_ALWAYS = 1 << 62  # close the gate when a request begins
LEAD_NEVER = -LEAD_ALWAYS  # never close it for lack of slack
NO_DEADLINE = (1 << 63) - 1
NO_QUEUE_LIMIT = (1 << 32) - 1

MEMBERSHIP_BYTE = 0
FIRST_JOB_BYTE = 1
DAEMON_BYTE = 1 + MAX_JOBS
KEEPER_BYTE = 2 + MAX_JOBS  # an experiment, between its jobs; native code has no use for it

ROW_FREE, ROW_LIVE = 0, 1
REASONS = ("", "alone", "load", "residual")  # why an SLO cannot be held; JobRow.infeasible is an index
PRIORITIES = {"low": 1, "high": 2}

_u32, _i64, _u64 = ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64


class Header(ctypes.Structure):
    """The first bytes of a table."""

    _fields_ = (
        ("magic", _u64),
        ("version", _u32),
        ("num_rows", _u32),
        ("total_bytes", _u64),
        ("page_bytes", _u64),
        ("epoch_ns", _u64),
        ("rows_offset", _u32),
        ("row_bytes", _u32),
        ("gates_offset", _u32),
        ("gates_bytes", _u32),
        ("max_hold_ns", _i64),
        ("breather_ns", _i64),
        ("quantum_ns", _i64),
        ("_pad0", ctypes.c_char * 48),
        ("daemon_heartbeat_ns", _u64),
        ("daemon_started_ns", _u64),
        ("daemon_pid", _u32),
        ("daemon_host", ctypes.c_char * 68),
        ("policy", ctypes.c_char * 32),
        ("mps_pipe", ctypes.c_char * 128),
        ("_pad1", ctypes.c_char * 8),
        ("devices", (ctypes.c_char * 64) * MAX_DEVICES),
    )


class DeviceHold(ctypes.Structure):
    """How long a device's gate has been closed."""

    _fields_ = (
        ("closed_since_ns", _i64),
        ("opened_ns", _i64),
        ("breathe_until_ns", _i64),
        ("forced", _u64),
        ("standby_until_ns", _i64),
        ("closed_ns", _i64),
        ("_pad", ctypes.c_char * 16),
    )


class JobRow(ctypes.Structure):
    """One job."""

    _fields_ = (
        ("state", _u32),
        ("generation", _u32),
        ("priority", _u32),
        ("device", _u32),
        ("pid", _u32),
        ("bit", _u32),
        ("mps", _u32),
        ("target_ppm", _u32),
        ("owner", _u64),
        ("slo_ns", _i64),
        ("ttft_slo_ns", _i64),
        ("tpot_slo_ns", _i64),
        ("weight_ppm", _u32),
        ("floor_ppm", _u32),
        ("attached_ns", _u64),
        ("name", ctypes.c_char * 48),
        ("lead_ns", _i64),
        ("queue_limit", _u32),
        ("inflation_ppm", _u32),
        ("margin_ns", _i64),
        ("quantile_ppm", _u32),
        ("infeasible", _u32),
        ("slice_ns", _i64),
        ("sm_count", _u32),
        ("rate_ppm", _u32),
        ("ahead_ns", _i64),
        ("needed_ns", _i64),
        ("heartbeat_ns", _u64),
        ("hold_since_ns", _u64),
        ("oldest_deadline_ns", _i64),
        ("open_requests", _u32),
        ("progress_ppm", _u32),
        ("requests_begun", _u64),
        ("requests_done", _u64),
        ("slo_met", _u64),
        ("slo_missed", _u64),
        ("closes", _u64),
        ("held_ns", _u64),
        ("requests_overdue", _u64),
        ("remaining_ns", _i64),
        ("progress_scored", _u64),
        ("progress_error_ppm", _u64),
        ("busy_ns", _u64),
        ("busy_open_ns", _u64),
        ("solo_requests", _u64),
        ("solo_ns", _u64),
        ("beside_requests", _u64),
        ("beside_ns", _u64),
        ("alone_ns", _i64),
        ("missed_anyway", _u64),
        ("tokens", _u64),
        ("queued", _u32),
        ("engine", _u32),
        ("ops_seen", _u64),
        ("ops_unknown", _u64),
        ("gate_points", _u64),
        ("gate_waits", _u64),
        ("gate_wait_ns", _u64),
        ("gated_ns", _u64),
        ("light_ns", _u64),
        ("longest_op_ns", _u64),
        ("throttle_ns", _u64),
        ("armed", _u32),
        ("sm_total", _u32),
        ("sampled_ns", _u64),
        ("covered_ns", _u64),
        ("sm_granted", _u32),
        ("_reserved2", _u32),
        ("sm_switches", _u64),
        ("sm_switch_ns", _u64),
        ("train_steps", _u64),
        ("latency", _u32 * HISTOGRAM_BUCKETS),
        ("service", _u32 * HISTOGRAM_BUCKETS),
        ("ttft", _u32 * HISTOGRAM_BUCKETS),
        ("tpot", _u32 * HISTOGRAM_BUCKETS),
    )


def bucket_bounds_ns(index: int) -> tuple[int, int]:
    """Lower (included) and upper (excluded) bound of a histogram bucket, in ns: exact to 1/16 above 16 us."""
    if index < 16:
        return index * 1000, (index + 1) * 1000
    exponent, mantissa = divmod(index - 16, 16)
    width_us = 1 << exponent
    low_us = (16 + mantissa) * width_us
    return low_us * 1000, (low_us + width_us) * 1000
