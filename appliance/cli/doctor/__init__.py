"""``appliance doctor``: what is wrong with a client's set-up, why, and what to do about it."""
