"""The three trainings, on Ray Train; the same functions run in a plain process."""
