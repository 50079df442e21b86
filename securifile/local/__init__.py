"""A whole cluster as real processes on one machine: the demo, the test harness, the benchmarks."""
