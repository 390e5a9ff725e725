"""Many steps at once: Picard's iteration."""
