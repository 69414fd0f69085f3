"""Files, the terminal, devices: what touches the machine."""
