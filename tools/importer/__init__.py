"""Checkpoints of trainers, read without running anything they hold, written as model folders."""
