"""The commands of the command line, a file a group; cli.py adds them to `cropscore`."""
