"""The registered teachers, one kind a module. What a kind needs is imported when one is built."""
