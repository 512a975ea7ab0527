"""The paper's results made again: data, training, export, benchmarks, and the table beside it."""
