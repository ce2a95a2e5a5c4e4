"""A hospital's side: read, count, seal, send, audit."""
