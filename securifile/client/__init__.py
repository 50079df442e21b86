"""What people use: an SDK and the `securifile` command."""
