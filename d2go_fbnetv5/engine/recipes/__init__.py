"""The kinds of runs that MODEL.META_ARCHITECTURE names: each is built, trained and judged in its own way."""
