"""Fronts: the processes beside a node process that take people's connections, so that a node uses more than one core (decision 20)."""
