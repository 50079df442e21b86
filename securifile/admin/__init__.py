"""An admin server: the catalogue, the people, the logs and the GUI."""
