"""Training at a site: Flower's SuperNode and our trainer as child processes, and the replay tallies they lead to."""
