"""Check on a CUDA GPU what a CPU cannot show; benchmarks/check_gpu/__main__.py has the commands and the groups."""
