"""The audit trail: records as syslog messages, a node's spool of them, and how an admin server keeps them."""
