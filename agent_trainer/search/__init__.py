"""The search for a training strategy: its space and methods, its jobs wherever they run, its journal and pictures."""
