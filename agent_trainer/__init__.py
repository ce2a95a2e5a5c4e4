"""Learning agents in Flower rounds, one file per paper. Empty until the first of them is built."""
