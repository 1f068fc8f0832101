"""What a GPU offers, as its driver tells torch, and where rows do not say it, as the shipped rule says."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from herald.classify import Limits, load_rule
from herald.experiments.rows import Row

# Blocks an SM can hold, by compute capability (CUDA C++ Programming Guide, table 'Technical Specifications').
_BLOCKS_PER_SM = {(7, 5): 16, (8, 6): 16, (8, 7): 16, (8, 9): 24}
_MOST_BLOCKS_PER_SM = 32


def of_properties(properties: Any) -> dict[str, Any] | None:
    """The limits, as a row keeps them; None where this torch does not tell them all."""
    try:
        return asdict(
            Limits(
                threads_per_sm=properties.max_threads_per_multi_processor,
                registers_per_sm=properties.regs_per_multiprocessor,
                shared_bytes_per_sm=properties.shared_memory_per_multiprocessor,
                blocks_per_sm=_BLOCKS_PER_SM.get((properties.major, properties.minor), _MOST_BLOCKS_PER_SM),
                bytes_per_s=2e3 * properties.memory_clock_rate * properties.memory_bus_width / 8,  # kHz, double rate
                cache_bytes=properties.L2_cache_size,
            )
        )
    except AttributeError:
        return None


def of_rows(found: Sequence[Row]) -> Limits:
    """Those of the device that the rows come from."""
    told = next((row["device"]["limits"] for row in found if row["device"].get("limits")), None)
    return Limits(**told) if told else load_rule(found[0]["device"]["gpu"]).limits
