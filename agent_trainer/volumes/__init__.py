"""Volumes with label volumes: where a site has them, how they are read and brought to one spacing and scale."""
