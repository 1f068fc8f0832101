"""The parts of the profiler: how iterations are measured in passes, and how what they measured becomes a profile."""
