"""Commands of the command line that share options or have subcommands; cli.py has the others."""
