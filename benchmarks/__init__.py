"""Speed, side by side with what people use today: `python -m benchmarks` runs what fits this machine."""
