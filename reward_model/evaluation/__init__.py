"""Evaluate reward models on labeled pairs and public benchmarks."""
