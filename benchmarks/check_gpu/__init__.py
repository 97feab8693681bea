"""Check on a CUDA GPU what a CPU cannot show; __main__.py describes the commands and the groups."""
