"""``python -m sfumato`` is ``sfumato``."""

from sfumato.cli import entry

if __name__ == "__main__":
    entry()
