"""Ray sessions, submitted jobs and declared clusters."""
