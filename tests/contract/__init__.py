"""Seeded faults (`mutants`) that show that the suite of `configs/contract` bites, and protocols made for it."""
