"""The same echo service written for each peer, and what runs them beside busline."""
