"""`python -m securifile.client` is the `securifile` command."""

from __future__ import annotations

from securifile.client.command import main

if __name__ == "__main__":
    main()
