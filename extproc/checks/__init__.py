"""Config lint: one small function per fault, all faults reported at once."""
