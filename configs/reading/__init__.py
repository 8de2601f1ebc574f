"""YAML files and overrides to one tree with the file and line of every key, and to dataclasses."""
