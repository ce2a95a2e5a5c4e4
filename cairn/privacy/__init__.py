"""Differential privacy: what a plan promises, the noise that keeps the promise, and what many plans add up to.

    terms → sensitivity → noise        a site's part
    gaussian → accountant              what it costs
    updates                            the same for model updates

Pure: the source of random bytes is handed in. docs/PRIVACY.md has the argument.
"""
