"""What a command shows: progress on stderr, tables on stdout."""
