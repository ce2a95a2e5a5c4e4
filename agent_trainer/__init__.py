"""Learning agents in Flower rounds; one file per paper."""
