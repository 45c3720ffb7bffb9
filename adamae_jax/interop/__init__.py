"""The same weights under other people's names."""
