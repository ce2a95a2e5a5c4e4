"""The middle: enrol, collect, merge, recover, embed, show."""
