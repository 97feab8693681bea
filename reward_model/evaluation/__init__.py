"""Evaluate reward models on labelled pairs and public benchmarks."""
