"""Names, authorities and leaves: who a server or a person is on the wire."""
