"""The researcher's commands: `cairn train`, `cairn runs`, `cairn evaluate`, `cairn export`."""
