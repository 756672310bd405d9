"""A service as it lives for weeks: several processes beside rotations, crashes and outages."""
