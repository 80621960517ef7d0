"""What networks learn: one loss a file."""
