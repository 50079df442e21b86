"""A whole cluster in one process: the real node and admin logic on a virtual clock, network and disk, everything drawn from one seed."""
