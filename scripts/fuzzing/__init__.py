"""The parts of `scripts/fuzz.py`: what is damaged and how, and the process that tries it."""
