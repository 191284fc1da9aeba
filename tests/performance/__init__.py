"""What serving costs beside what it could cost: `make perf` measures it and writes docs/benchmarks.md."""
