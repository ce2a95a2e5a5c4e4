"""`cairn deploy`: containers at a clinic, or of the aggregator, planned, started, upgraded and taken down by the SDK.

settings → plan → look (probe) → checks → running | upgrading | volumes | archive | support
"""
