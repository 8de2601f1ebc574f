"""The rules of debates and games: pure generators, standard library only (see ARCHITECTURE.md)."""
