"""Every setting of a run: what it is, what it may be, and how it is given."""
