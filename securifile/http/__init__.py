"""What both facades share: strict HTTP with early dispatch and streaming, problems, ranges, tickets, identity."""
