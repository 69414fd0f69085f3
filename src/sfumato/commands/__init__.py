"""The commands of the command line, one a module; heavy imports happen when a command runs."""
