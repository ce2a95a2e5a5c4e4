"""Training runs: their queue and log, the replay that rounds share, and the processes that do the rounds."""
