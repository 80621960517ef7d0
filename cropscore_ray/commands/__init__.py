"""Commands of the command line that have subcommands of their own; cli.py has the others."""
