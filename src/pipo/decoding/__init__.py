"""Decoding: the loop, what it reads with, and what it samples with."""
