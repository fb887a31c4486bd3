"""``appliance doctor``: what is wrong with a client's configuration, why, and what to do about it."""
