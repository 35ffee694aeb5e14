"""Several machines that share a forward: the control channel, transports, and which machines are worth it."""
