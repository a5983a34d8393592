"""Fidelity: recorded runs of real GPUs, replayed on virtual ones, and scored.

It may import every package and is imported by `cli` only. Recordings never come with the project: this package has
readers for them, and the user says where they lie.
"""
