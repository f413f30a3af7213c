"""The networks: torch only; they know nothing of bytes, files or networks of computers."""
