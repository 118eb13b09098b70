"""What MODEL.META_ARCHITECTURE names: how each kind of run is built, trained and judged."""
