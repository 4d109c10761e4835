"""Whether steps on a device leave the bits that the CPU kernels leave: what `python -m benchmarks gpu` checks."""
