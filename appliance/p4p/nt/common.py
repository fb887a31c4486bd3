"""What all normative types share: time stamp, alarm, and NTBase."""
