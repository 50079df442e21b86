"""The sentinel of a node: a small process that tells the other servers when the node process has ended."""
