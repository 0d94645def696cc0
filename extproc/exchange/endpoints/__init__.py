"""One file per endpoint, with everything about it: parse, demand, meter, hide."""
