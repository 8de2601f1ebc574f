"""The kinds of protocol that are not lists of phases."""
