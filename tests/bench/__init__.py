"""``make bench``: what a request costs, measured on the real house. See docs/decisions/performance.md."""
